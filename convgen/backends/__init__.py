"""Backends turn FLAT kernels into native code behind one protocol."""
