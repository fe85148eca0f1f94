
; The bundled pool as a host of parallel ranges: one row for each range. A worker's number travels
; as the address of its (empty) scratch.

%pool_parallel = type { ptr, i32, ptr }

define i64 @{{ name }}_pool_bytes() {
  %pool = call i64 @convgen_pool_bytes()
  %numbers = mul i64 1024, 8
  %most = add i64 %pool, %numbers
  %row.end = getelementptr %convgen_row, ptr null, i64 1
  %row = ptrtoint ptr %row.end to i64
  %all = add i64 %most, %row
  %some = add i64 %all, 127
  %bytes = and i64 %some, -64
  ret i64 %bytes
}

define internal ptr @pool_numbers(ptr %pool) {
  %bytes = call i64 @convgen_pool_bytes()
  %some = add i64 %bytes, 63
  %offset = and i64 %some, -64
  %at = getelementptr i8, ptr %pool, i64 %offset
  ret ptr %at
}

; Start a pool in zeroed memory; fills in the structure that the doors take. 0, or 4, 6, 7.
define i32 @{{ name }}_pool_start(ptr %pool, i32 %workers, ptr %parallel) {
entry:
  %no.pool = icmp eq ptr %pool, null
  %no.place = icmp eq ptr %parallel, null
  %none = or i1 %no.pool, %no.place
  br i1 %none, label %null, label %place
place:
  %address = ptrtoint ptr %pool to i64
  %rest = and i64 %address, 63
  %crooked = icmp ne i64 %rest, 0
  br i1 %crooked, label %align, label %look
look:
  %few = icmp slt i32 %workers, 1
  %many = icmp sgt i32 %workers, 1024
  %bad = or i1 %few, %many
  br i1 %bad, label %number, label %start
start:
  %bytes = call i64 @{{ name }}_pool_bytes()
  call void @llvm.memset.p0.i64(ptr %pool, i8 0, i64 %bytes, i1 false)
  call void @convgen_pool_init(ptr %pool)
  %numbers = call ptr @pool_numbers(ptr %pool)
  br label %next
next:
  %i = phi i64 [ 0, %start ], [ %more, %put ]
  %last = icmp uge i64 %i, 1024
  br i1 %last, label %grow, label %put
put:
  %to = getelementptr ptr, ptr %numbers, i64 %i
  %number.as = getelementptr i8, ptr null, i64 %i
  store ptr %number.as, ptr %to
  %more = add i64 %i, 1
  br label %next
grow:
  %others = sub i32 %workers, 1
  %wanted = zext i32 %others to i64
  %started = call i64 @convgen_pool_grow(ptr %pool, i64 %wanted)
  %all = add i64 %started, 1
  %count = trunc i64 %all to i32
  store ptr %pool, ptr %parallel
  %workers.p = getelementptr %pool_parallel, ptr %parallel, i64 0, i32 1
  store i32 %count, ptr %workers.p
  %run.p = getelementptr %pool_parallel, ptr %parallel, i64 0, i32 2
  store ptr @pool_run, ptr %run.p
  ret i32 0
null:
  ret i32 4
align:
  ret i32 6
number:
  ret i32 7
}

define void @{{ name }}_pool_stop(ptr %pool) {
entry:
  %none = icmp eq ptr %pool, null
  br i1 %none, label %out, label %stop
stop:
  call void @convgen_pool_stop(ptr %pool)
  br label %out
out:
  ret void
}

define internal void @pool_task(ptr %pair, ptr %number, i64 %begin, i64 %end) {
  %body = load ptr, ptr %pair
  %c.p = getelementptr ptr, ptr %pair, i64 1
  %c = load ptr, ptr %c.p
  %worker.wide = ptrtoint ptr %number to i64
  %worker = trunc i64 %worker.wide to i32
  call void %body(ptr %c, i32 %worker, i64 %begin, i64 %end)
  ret void
}

define internal void @pool_run(ptr %pool, i64 %extent, i64 %grain, ptr %body, ptr %c) {
  %pair = alloca [2 x ptr], align 8
  store ptr %body, ptr %pair
  %c.p = getelementptr ptr, ptr %pair, i64 1
  store ptr %c, ptr %c.p
  %numbers = call ptr @pool_numbers(ptr %pool)
  %row = getelementptr ptr, ptr %numbers, i64 1024
  store ptr @pool_task, ptr %row
  %args.p = getelementptr %convgen_row, ptr %row, i64 0, i32 1
  store ptr %pair, ptr %args.p
  %extent.p = getelementptr %convgen_row, ptr %row, i64 0, i32 2
  store i64 %extent, ptr %extent.p
  %grain.p = getelementptr %convgen_row, ptr %row, i64 0, i32 3
  store i64 %grain, ptr %grain.p
  %workers.p = getelementptr inbounds %convgen_pool, ptr %pool, i64 0, i32 11
  %others = load i64, ptr %workers.p
  %threads = add i64 %others, 1
  call void @convgen_pool_run(ptr %pool, ptr %row, i64 1, ptr %numbers, i64 %threads)
  ret void
}

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
