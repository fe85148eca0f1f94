; NEON is part of every AArch64 processor.
define internal i64 @cpu() {
  ret i64 1
}
