; Keeps the workers off the caller's processor while others are allowed. On virtual machines an idle
; processor can look taken to the scheduler, so that a worker wakes up on the caller's and waits for
; its time slice to end: milliseconds. Linux only. Masks change when the caller has moved; they come
; from the caller's own, so a narrower one of the user's is kept.

declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @pthread_setaffinity_np(i64, i64, ptr)
declare i64 @llvm.vector.reduce.or.v16i64(<16 x i64>)

define internal void @convgen_apart(ptr %pool) {
entry:
  %mask = alloca <16 x i64>, align 128
  %cpu = call i32 @sched_getcpu()
  %known = icmp ult i32 %cpu, 1024
  br i1 %known, label %look, label %out
look:
  %place = zext i32 %cpu to i64
  %mark = add i64 %place, 1
  %home.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 12
  %home = load i64, ptr %home.p
  %same = icmp eq i64 %home, %mark
  br i1 %same, label %out, label %ask
ask:
  store i64 %mark, ptr %home.p
  store <16 x i64> zeroinitializer, ptr %mask
  %failed = call i32 @sched_getaffinity(i32 0, i64 128, ptr %mask)
  %ok = icmp sge i32 %failed, 0
  br i1 %ok, label %clear, label %out
clear:
  %word = lshr i64 %place, 6
  %word.p = getelementptr inbounds i64, ptr %mask, i64 %word
  %old = load i64, ptr %word.p
  %low = and i64 %place, 63
  %bit = shl i64 1, %low
  %others = xor i64 %bit, -1
  %left = and i64 %old, %others
  store i64 %left, ptr %word.p
  %all = load <16 x i64>, ptr %mask
  %any = call i64 @llvm.vector.reduce.or.v16i64(<16 x i64> %all)
  %alone = icmp eq i64 %any, 0
  br i1 %alone, label %out, label %workers
workers:
  %count.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 11
  %count = load i64, ptr %count.p
  br label %next
next:
  %n = phi i64 [ 0, %workers ], [ %more, %move ]
  %last = icmp uge i64 %n, %count
  br i1 %last, label %out, label %move
move:
  %thread.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 15, i64 %n
  %thread = load i64, ptr %thread.p
  %a = call i32 @pthread_setaffinity_np(i64 %thread, i64 128, ptr %mask)
  %more = add i64 %n, 1
  br label %next
out:
  ret void
}
