"""Pictures and pages of what convgen derives, compiles and learns."""
