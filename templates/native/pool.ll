; A persistent pool of threads that runs a table of phases in one call.
;
; A row is a parallel range: the tasks 0..extent-1 of fn(args, scratch of the worker, begin, end).
; Rows run one after another; a row is finished when `done` tasks have returned, whoever ran them.
; The chunks of a row are shared out in order: worker v's own are those from v/threads to
; (v+1)/threads of them, so that the same worker comes back to the same part of an array in every
; row and every run, and finds it in its cache. Who has none left takes from the end of another's
; part. A worker that wakes up late finds nothing left and holds nobody up. What a task computes
; does not depend on the worker.
;
; taken[v] says how much of v's part is gone: chunks taken from its front (8 bits), from its end
; (8 bits), and above them the number of the row, counted over all runs of the pool. A word of an
; earlier row stands for nothing taken; one of a later row says that the row has ended. A part has
; nine chunks at most, as a chunk is a fourth of a part or more.
;
; Workers enter an epoch only while `open` names it; the caller closes it and waits until `active`
; is zero before it returns, so rows and arguments may be freed after the call.
; An idle worker spins for a few hundred microseconds, then sleeps until the next epoch.
;
; The pool's memory is given by the host: zeroed, aligned to 64 bytes, convgen_pool_bytes() long.
; The host appends @convgen_pause, the processor's hint for waiting loops, and @convgen_apart, which
; keeps the workers off the caller's processor (apart.ll; elsewhere than on Linux it does nothing).

;                    fn   args extent grain         done chunk
%convgen_row = type { ptr, ptr, i64, i64, [4 x i64], i64, i64, [6 x i64] }

;                     epoch            open active           stop limit rows count scratch
%convgen_pool = type { i64, [7 x i64], i64, i64, [6 x i64], i64, i64, ptr, i64, ptr,
; sleeping workers home     mutex       condition   threads        slots
    i64, i64, i64, [16 x i64], [16 x i64], [1024 x i64], [1024 x %convgen_slot],
;   rows so far         taken
    i64, [7 x i64], [1024 x [8 x i64]] }

;                     pool number
%convgen_slot = type { ptr, i64 }

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @sched_yield()

define i64 @convgen_pool_bytes() {
  %end = getelementptr %convgen_pool, ptr null, i64 1
  %size = ptrtoint ptr %end to i64
  ret i64 %size
}

define void @convgen_pool_init(ptr %pool) {
  %mutex = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 13
  %condition = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 14
  %a = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %b = call i32 @pthread_cond_init(ptr %condition, ptr null)
  ret void
}

; Start workers until there are `wanted` (1024 at most); returns how many there are. Worker number
; 0 is the caller of convgen_pool_run.
define i64 @convgen_pool_grow(ptr %pool, i64 %wanted) {
entry:
  %count.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 11
  %before = load i64, ptr %count.p
  %many = icmp ult i64 %wanted, 1024
  %limit = select i1 %many, i64 %wanted, i64 1024
  br label %next
next:
  %n = phi i64 [ %before, %entry ], [ %more, %started ]
  %enough = icmp uge i64 %n, %limit
  br i1 %enough, label %out, label %start
start:
  %slot = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 16, i64 %n
  store ptr %pool, ptr %slot
  %number.p = getelementptr inbounds %convgen_slot, ptr %slot, i64 0, i32 1
  %more = add i64 %n, 1
  store i64 %more, ptr %number.p
  %thread = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 15, i64 %n
  %failed = call i32 @pthread_create(ptr %thread, ptr null, ptr @convgen_worker, ptr %slot)
  %ok = icmp eq i32 %failed, 0
  br i1 %ok, label %started, label %out
started:
  store i64 %more, ptr %count.p
  %home.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 12
  store i64 0, ptr %home.p
  br label %next
out:
  call void @convgen_apart(ptr %pool)
  ret i64 %n
}

; End all workers and wait for them.
define void @convgen_pool_stop(ptr %pool) {
entry:
  %stop.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 5
  store atomic i64 1, ptr %stop.p seq_cst, align 8
  call void @convgen_wake(ptr %pool)
  %count.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 11
  %count = load i64, ptr %count.p
  br label %next
next:
  %n = phi i64 [ 0, %entry ], [ %more, %join ]
  %all = icmp uge i64 %n, %count
  br i1 %all, label %out, label %join
join:
  %thread.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 15, i64 %n
  %thread = load i64, ptr %thread.p
  %a = call i32 @pthread_join(i64 %thread, ptr null)
  %more = add i64 %n, 1
  br label %next
out:
  store i64 0, ptr %count.p
  store atomic i64 0, ptr %stop.p seq_cst, align 8
  ret void
}

define internal void @convgen_wake(ptr %pool) {
  %mutex = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 13
  %condition = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 14
  %a = call i32 @pthread_mutex_lock(ptr %mutex)
  %b = call i32 @pthread_cond_broadcast(ptr %condition)
  %c = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define internal ptr @convgen_worker(ptr %slot) {
entry:
  %pool = load ptr, ptr %slot
  %number.p = getelementptr inbounds %convgen_slot, ptr %slot, i64 0, i32 1
  %number = load i64, ptr %number.p
  %epoch.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 0
  %open.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 2
  %active.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 3
  %stop.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 5
  %limit.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 6
  %sleeping.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 10
  %mutex = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 13
  %condition = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 14
  br label %idle
idle:
  %last = phi i64 [ 0, %entry ], [ %last, %again ], [ %last, %awake ], [ %now, %left ]
  %spins = phi i64 [ 0, %entry ], [ %spun, %again ], [ 0, %awake ], [ 0, %left ]
  %now = load atomic i64, ptr %epoch.p acquire, align 8
  %stop = load atomic i64, ptr %stop.p acquire, align 8
  %stopped = icmp ne i64 %stop, 0
  br i1 %stopped, label %out, label %look
look:
  %fresh = icmp ne i64 %now, %last
  br i1 %fresh, label %enter, label %wait
wait:
  %tired = icmp ugt i64 %spins, 12000
  br i1 %tired, label %sleep, label %again
again:
  call void @convgen_pause()
  %spun = add i64 %spins, 1
  br label %idle
sleep:
  %a = call i32 @pthread_mutex_lock(ptr %mutex)
  %b = atomicrmw add ptr %sleeping.p, i64 1 seq_cst
  br label %doze
doze:
  %seen = load atomic i64, ptr %epoch.p seq_cst, align 8
  %ended = load atomic i64, ptr %stop.p seq_cst, align 8
  %same = icmp eq i64 %seen, %last
  %going = icmp eq i64 %ended, 0
  %still = and i1 %same, %going
  br i1 %still, label %nap, label %awake
nap:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %doze
awake:
  %d = atomicrmw sub ptr %sleeping.p, i64 1 seq_cst
  %e = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %idle
enter:
  %f = atomicrmw add ptr %active.p, i64 1 seq_cst
  %open = load atomic i64, ptr %open.p seq_cst, align 8
  %mine = icmp eq i64 %open, %now
  br i1 %mine, label %admit, label %left
admit:
  %limit = load i64, ptr %limit.p
  %wanted = icmp ult i64 %number, %limit
  br i1 %wanted, label %work, label %left
work:
  call void @convgen_work(ptr %pool, i64 %number)
  br label %left
left:
  %g = atomicrmw sub ptr %active.p, i64 1 seq_cst
  br label %idle
out:
  ret ptr null
}

; Take chunks of each row in turn; go on to the next row when all tasks have returned.
define internal void @convgen_work(ptr %pool, i64 %number) {
entry:
  %threads.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 6
  %threads = load i64, ptr %threads.p
  %rows.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 7
  %rows = load ptr, ptr %rows.p
  %count.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 8
  %count = load i64, ptr %count.p
  %all.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 9
  %all = load ptr, ptr %all.p
  %own.p = getelementptr inbounds ptr, ptr %all, i64 %number
  %scratch = load ptr, ptr %own.p
  %before.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 17
  %before = load i64, ptr %before.p
  br label %next
next:
  %n = phi i64 [ 0, %entry ], [ %more, %finished ]
  %last = icmp uge i64 %n, %count
  br i1 %last, label %out, label %begin
begin:
  %row = getelementptr inbounds %convgen_row, ptr %rows, i64 %n
  %fn = load ptr, ptr %row
  %args.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 1
  %args = load ptr, ptr %args.p
  %extent.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 2
  %extent = load i64, ptr %extent.p
  %done.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 5
  %chunk.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 6
  %chunk = load i64, ptr %chunk.p
  %over = add i64 %chunk, -1
  %rounded = add i64 %extent, %over
  %chunks = udiv i64 %rounded, %chunk
  %place = add i64 %before, %n
  %fresh = shl i64 %place, 16
  %ended = add i64 %fresh, 65536
  br label %look
look:
  %far = phi i64 [ 0, %begin ], [ %further, %none ]
  %round = icmp uge i64 %far, %threads
  br i1 %round, label %wait, label %visit
visit:
  %straight = add i64 %number, %far
  %beyond = icmp uge i64 %straight, %threads
  %wrapped = sub i64 %straight, %threads
  %v = select i1 %beyond, i64 %wrapped, i64 %straight
  %v.end = add i64 %v, 1
  %from.all = mul i64 %v, %chunks
  %from = udiv i64 %from.all, %threads
  %to.all = mul i64 %v.end, %chunks
  %to = udiv i64 %to.all, %threads
  %part = sub i64 %to, %from
  %mine = icmp eq i64 %far, 0
  %step = select i1 %mine, i64 1, i64 256
  %taken.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 19, i64 %v
  %first = load atomic i64, ptr %taken.p acquire, align 8
  br label %take
take:
  %seen = phi i64 [ %first, %visit ], [ %now, %claim ], [ %again, %run ]
  %old = icmp ult i64 %seen, %fresh
  %state = select i1 %old, i64 %fresh, i64 %seen
  %front = and i64 %state, 255
  %shifted = lshr i64 %state, 8
  %back = and i64 %shifted, 255
  %gone = add i64 %front, %back
  %some = icmp ult i64 %gone, %part
  %current = icmp ult i64 %state, %ended
  %left = and i1 %some, %current
  br i1 %left, label %claim, label %none
none:
  %further = add i64 %far, 1
  br label %look
claim:
  %new = add i64 %state, %step
  %pair = cmpxchg ptr %taken.p, i64 %seen, i64 %new acq_rel acquire, align 8
  %now = extractvalue { i64, i1 } %pair, 0
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %run, label %take
run:
  %near = add i64 %from, %front
  %to.last = add i64 %to, -1
  %far.chunk = sub i64 %to.last, %back
  %which = select i1 %mine, i64 %near, i64 %far.chunk
  %start = mul i64 %which, %chunk
  %stop = add i64 %start, %chunk
  %inside = icmp slt i64 %stop, %extent
  %end = select i1 %inside, i64 %stop, i64 %extent
  call void %fn(ptr %args, ptr %scratch, i64 %start, i64 %end)
  %ran = sub i64 %end, %start
  %a = atomicrmw add ptr %done.p, i64 %ran acq_rel
  %again = load atomic i64, ptr %taken.p acquire, align 8
  br label %take
wait:
  %spins = phi i64 [ 0, %look ], [ %spun, %pause ]
  %done = load atomic i64, ptr %done.p acquire, align 8
  %ready = icmp sge i64 %done, %extent
  br i1 %ready, label %finished, label %busy
busy:
  %tired = icmp ugt i64 %spins, 4000
  br i1 %tired, label %yield, label %pause
yield:
  %b = call i32 @sched_yield()
  br label %pause
pause:
  call void @convgen_pause()
  %spun = add i64 %spins, 1
  br label %wait
finished:
  %more = add i64 %n, 1
  br label %next
out:
  ret void
}

; Run `count` rows with the caller and threads-1 workers; scratch[i] belongs to worker i. One call
; at a time for each pool.
define void @convgen_pool_run(ptr %pool, ptr %rows, i64 %count, ptr %scratch, i64 %threads) {
entry:
  %parts = mul i64 %threads, 4
  br label %next
next:
  %n = phi i64 [ 0, %entry ], [ %more, %reset ]
  %last = icmp uge i64 %n, %count
  br i1 %last, label %publish, label %reset
reset:
  %row = getelementptr inbounds %convgen_row, ptr %rows, i64 %n
  %extent.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 2
  %extent = load i64, ptr %extent.p
  %grain.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 3
  %grain = load i64, ptr %grain.p
  %done.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 5
  store i64 0, ptr %done.p
  %share = udiv i64 %extent, %parts
  %small = icmp ult i64 %share, %grain
  %atleast = select i1 %small, i64 %grain, i64 %share
  %none = icmp ult i64 %atleast, 1
  %chunk = select i1 %none, i64 1, i64 %atleast
  %chunk.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 6
  store i64 %chunk, ptr %chunk.p
  %more = add i64 %n, 1
  br label %next
publish:
  %epoch.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 0
  %open.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 2
  %active.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 3
  %limit.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 6
  store i64 %threads, ptr %limit.p
  %rows.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 7
  store ptr %rows, ptr %rows.p
  %count.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 8
  %rows.last = load i64, ptr %count.p
  %rows.p.all = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 17
  %rows.before = load i64, ptr %rows.p.all
  %rows.now = add i64 %rows.before, %rows.last
  store i64 %rows.now, ptr %rows.p.all
  store i64 %count, ptr %count.p
  %scratch.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 9
  store ptr %scratch, ptr %scratch.p
  %before = load i64, ptr %epoch.p
  %epoch = add i64 %before, 1
  store atomic i64 %epoch, ptr %open.p seq_cst, align 8
  store atomic i64 %epoch, ptr %epoch.p seq_cst, align 8
  %sleeping.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 10
  %sleeping = load atomic i64, ptr %sleeping.p seq_cst, align 8
  %asleep = icmp ne i64 %sleeping, 0
  br i1 %asleep, label %wake, label %work
wake:
  call void @convgen_apart(ptr %pool)
  call void @convgen_wake(ptr %pool)
  br label %work
work:
  call void @convgen_work(ptr %pool, i64 0)
  store atomic i64 0, ptr %open.p seq_cst, align 8
  br label %drain
drain:
  %spins = phi i64 [ 0, %work ], [ %spun, %pause ]
  %active = load atomic i64, ptr %active.p seq_cst, align 8
  %empty = icmp eq i64 %active, 0
  br i1 %empty, label %out, label %busy
busy:
  %tired = icmp ugt i64 %spins, 4000
  br i1 %tired, label %yield, label %pause
yield:
  %a = call i32 @sched_yield()
  br label %pause
pause:
  call void @convgen_pause()
  %spun = add i64 %spins, 1
  br label %drain
out:
  ret void
}

; Run `count` rows in the calling thread alone.
define void @convgen_run_alone(ptr %rows, i64 %count, ptr %scratch) {
entry:
  br label %next
next:
  %n = phi i64 [ 0, %entry ], [ %more, %run ], [ %more, %begin ]
  %last = icmp uge i64 %n, %count
  br i1 %last, label %out, label %begin
begin:
  %row = getelementptr inbounds %convgen_row, ptr %rows, i64 %n
  %fn = load ptr, ptr %row
  %args.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 1
  %args = load ptr, ptr %args.p
  %extent.p = getelementptr inbounds %convgen_row, ptr %row, i64 0, i32 2
  %extent = load i64, ptr %extent.p
  %more = add i64 %n, 1
  %some = icmp sgt i64 %extent, 0
  br i1 %some, label %run, label %next
run:
  call void %fn(ptr %args, ptr %scratch, i64 0, i64 %extent)
  br label %next
out:
  ret void
}
