; The engine of a bundle: rows of work over tables that the exporter writes. Everything here is
; private; the doors (forward.ll, backward.ll, step.ll) call it. No memory is allocated, nothing
; outside the caller's buffers is written.
;
; A pointer table `bases` has one slot for each array of the caller; an argument of a kernel is a
; slot and an offset. Rows run one after another; a row is a parallel range of tasks.

%arg = type { i64, i64 }                              ; slot, offset
%row = type { ptr, i64, i64, i64, i64, i64 }          ; function extent grain first-arg args optional
%list = type { ptr, i64 }                             ; rows, count
;                   cpu lists args packed packed+scratch saved(nominal, single) work scratch name
%level = type { i64, ptr, ptr, i64, i64, i64, i64, i64, i64, ptr }
%job = type { ptr, ptr, ptr, i64 }                    ; function, args, scratch, bytes of a worker
%parallel = type { ptr, i32, ptr }                    ; host, workers, run
%context = type { i64, i64 }                          ; magic, level
%span = type { ptr, i64 }                             ; data, bytes
%port = type { i64, i64, i64 }                        ; bytes of a sample, bytes besides, alignment

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define internal void @copy(ptr %args, ptr %scratch, i64 %begin, i64 %end) {
  %to.p = load ptr, ptr %args
  %from.q = getelementptr ptr, ptr %args, i64 1
  %from.p = load ptr, ptr %from.q
  %to = getelementptr i8, ptr %to.p, i64 %begin
  %from = getelementptr i8, ptr %from.p, i64 %begin
  %size = sub i64 %end, %begin
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %size, i1 false)
  ret void
}

define internal void @zero(ptr %args, ptr %scratch, i64 %begin, i64 %end) {
  %to.p = load ptr, ptr %args
  %to = getelementptr i8, ptr %to.p, i64 %begin
  %size = sub i64 %end, %begin
  call void @llvm.memset.p0.i64(ptr %to, i8 0, i64 %size, i1 false)
  ret void
}

; What the host's parallel run calls: the tasks begin..end-1 of a job, as worker number `worker`.
define internal void @body(ptr %job, i32 %worker, i64 %begin, i64 %end) {
  %f = load ptr, ptr %job
  %args.p = getelementptr %job, ptr %job, i64 0, i32 1
  %args = load ptr, ptr %args.p
  %scratch.p = getelementptr %job, ptr %job, i64 0, i32 2
  %all = load ptr, ptr %scratch.p
  %bytes.p = getelementptr %job, ptr %job, i64 0, i32 3
  %bytes = load i64, ptr %bytes.p
  %number = sext i32 %worker to i64
  %offset = mul i64 %number, %bytes
  %scratch = getelementptr i8, ptr %all, i64 %offset
  call void %f(ptr %args, ptr %scratch, i64 %begin, i64 %end)
  ret void
}

; Run list number `which` of a level; optional rows only when `optional` is not 0.
define internal void @run(ptr %level, i64 %which, ptr %bases, ptr %scratch, i64 %optional, ptr %parallel) {
entry:
  %args = alloca [{{ most_arguments }} x ptr], align 8
  %job = alloca %job, align 8
  %lists.p = getelementptr %level, ptr %level, i64 0, i32 1
  %lists = load ptr, ptr %lists.p
  %table.p = getelementptr %level, ptr %level, i64 0, i32 2
  %table = load ptr, ptr %table.p
  %bytes.p = getelementptr %level, ptr %level, i64 0, i32 8
  %bytes = load i64, ptr %bytes.p
  %list = getelementptr %list, ptr %lists, i64 %which
  %rows = load ptr, ptr %list
  %count.p = getelementptr %list, ptr %list, i64 0, i32 1
  %count = load i64, ptr %count.p
  %alone = icmp eq ptr %parallel, null
  br i1 %alone, label %start, label %ask
ask:
  %workers.p = getelementptr %parallel, ptr %parallel, i64 0, i32 1
  %given = load i32, ptr %workers.p
  br label %start
start:
  %workers = phi i32 [ 1, %entry ], [ %given, %ask ]
  %many = icmp sgt i32 %workers, 1
  br label %next
next:
  %n = phi i64 [ 0, %start ], [ %more, %after ]
  %last = icmp uge i64 %n, %count
  br i1 %last, label %out, label %look
look:
  %row = getelementptr %row, ptr %rows, i64 %n
  %f = load ptr, ptr %row
  %extent.p = getelementptr %row, ptr %row, i64 0, i32 1
  %extent = load i64, ptr %extent.p
  %grain.p = getelementptr %row, ptr %row, i64 0, i32 2
  %grain = load i64, ptr %grain.p
  %first.p = getelementptr %row, ptr %row, i64 0, i32 3
  %first = load i64, ptr %first.p
  %some.p = getelementptr %row, ptr %row, i64 0, i32 4
  %some = load i64, ptr %some.p
  %may.p = getelementptr %row, ptr %row, i64 0, i32 5
  %may = load i64, ptr %may.p
  %more = add i64 %n, 1
  %left = icmp eq i64 %may, 0
  %asked = icmp ne i64 %optional, 0
  %wanted = or i1 %left, %asked
  br i1 %wanted, label %bind, label %after
bind:
  %i = phi i64 [ 0, %look ], [ %j, %one ]
  %bound = icmp uge i64 %i, %some
  br i1 %bound, label %go, label %one
one:
  %at = add i64 %first, %i
  %arg = getelementptr %arg, ptr %table, i64 %at
  %slot = load i64, ptr %arg
  %offset.p = getelementptr %arg, ptr %arg, i64 0, i32 1
  %offset = load i64, ptr %offset.p
  %base.p = getelementptr ptr, ptr %bases, i64 %slot
  %base = load ptr, ptr %base.p
  %address = getelementptr i8, ptr %base, i64 %offset
  %place = getelementptr ptr, ptr %args, i64 %i
  store ptr %address, ptr %place
  %j = add i64 %i, 1
  br label %bind
go:
  %large = icmp sgt i64 %extent, %grain
  %split = and i1 %large, %many
  br i1 %split, label %spread, label %serial
serial:
  call void %f(ptr %args, ptr %scratch, i64 0, i64 %extent)
  br label %after
spread:
  store ptr %f, ptr %job
  %job.args = getelementptr %job, ptr %job, i64 0, i32 1
  store ptr %args, ptr %job.args
  %job.scratch = getelementptr %job, ptr %job, i64 0, i32 2
  store ptr %scratch, ptr %job.scratch
  %job.bytes = getelementptr %job, ptr %job, i64 0, i32 3
  store i64 %bytes, ptr %job.bytes
  %host = load ptr, ptr %parallel
  %host.run.p = getelementptr %parallel, ptr %parallel, i64 0, i32 2
  %host.run = load ptr, ptr %host.run.p
  call void %host.run(ptr %host, i64 %extent, i64 %grain, ptr @body, ptr %job)
  br label %after
after:
  br label %next
out:
  ret void
}

; Put `count` pointers into slots from `first` on: `given` itself when there is one, else what the
; array `given` holds.
define internal void @bind(ptr %bases, i64 %first, i64 %count, ptr %given) {
entry:
  %slots = getelementptr ptr, ptr %bases, i64 %first
  %none = icmp eq ptr %given, null
  %single = icmp eq i64 %count, 1
  %direct = or i1 %none, %single
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %more, %put ]
  %last = icmp uge i64 %i, %count
  br i1 %last, label %out, label %one
one:
  br i1 %direct, label %put, label %read
read:
  %from = getelementptr ptr, ptr %given, i64 %i
  %found = load ptr, ptr %from
  br label %put
put:
  %pointer = phi ptr [ %given, %one ], [ %found, %read ]
  %slot = getelementptr ptr, ptr %slots, i64 %i
  store ptr %pointer, ptr %slot
  %more = add i64 %i, 1
  br label %next
out:
  ret void
}

; Pointers into one block: block + offsets[i], into an array of `count` pointers.
define internal void @scatter(ptr %block, ptr %offsets, i64 %count, ptr %pointers) {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %more, %put ]
  %last = icmp uge i64 %i, %count
  br i1 %last, label %out, label %put
put:
  %offset.p = getelementptr i64, ptr %offsets, i64 %i
  %offset = load i64, ptr %offset.p
  %address = getelementptr i8, ptr %block, i64 %offset
  %to = getelementptr ptr, ptr %pointers, i64 %i
  store ptr %address, ptr %to
  %more = add i64 %i, 1
  br label %next
out:
  ret void
}

; Cut a batch into nominal batches (list `which`), then single samples (list `which` + 1), in order.
; With `sums` the gradients to the weights of every part after the first go to the workspace and are
; added to the caller's, part after part.
define internal void @cut(ptr %level, i64 %which, i64 %batch, ptr %bases, ptr %scratch, i64 %optional, i64 %sums, ptr %parallel) {
entry:
  %nominal.p = getelementptr %level, ptr %level, i64 0, i32 5
  %nominal.bytes = load i64, ptr %nominal.p
  %single.p = getelementptr %level, ptr %level, i64 0, i32 6
  %single.bytes = load i64, ptr %single.p
  %saved.p = getelementptr ptr, ptr %bases, i64 {{ slot_saved }}
  %work.p = getelementptr ptr, ptr %bases, i64 {{ slot_work }}
  br label %next
next:
  %left = phi i64 [ %batch, %entry ], [ %rest, %moved ]
  %done = icmp sle i64 %left, 0
  br i1 %done, label %out, label %part
part:
  %whole = icmp sge i64 %left, {{ nominal }}
  %size = select i1 %whole, i64 {{ nominal }}, i64 1
  %bytes = select i1 %whole, i64 %nominal.bytes, i64 %single.bytes
  %other = add i64 %which, 1
  %number = select i1 %whole, i64 %which, i64 %other
  call void @run(ptr %level, i64 %number, ptr %bases, ptr %scratch, i64 %optional, ptr %parallel)
  %rest = sub i64 %left, %size
  %adds = icmp ne i64 %sums, 0
  br i1 %adds, label %sum, label %move
sum:
  %first = icmp eq i64 %left, %batch
  br i1 %first, label %turn, label %add
add:
  call void @run(ptr %level, i64 7, ptr %bases, ptr %scratch, i64 1, ptr %parallel)
  br label %move
turn:
  %work = load ptr, ptr %work.p
  %grads.p = getelementptr ptr, ptr %bases, i64 {{ slot_grad }}
  call void @scatter(ptr %work, ptr @grad.offsets, i64 {{ grads }}, ptr %grads.p)
  br label %move
move:
  %ended = icmp sle i64 %rest, 0
  br i1 %ended, label %out, label %shift.all
shift.all:
  %saved = load ptr, ptr %saved.p
  %saved.next = getelementptr i8, ptr %saved, i64 %bytes
  store ptr %saved.next, ptr %saved.p
  br label %step
step:
  %i = phi i64 [ 0, %shift.all ], [ %more, %stepped ]
  %all = icmp uge i64 %i, {{ slots }}
  br i1 %all, label %moved, label %one
one:
  %stride.p = getelementptr i64, ptr @strides, i64 %i
  %stride = load i64, ptr %stride.p
  %far = mul i64 %stride, %size
  %slot = getelementptr ptr, ptr %bases, i64 %i
  %pointer = load ptr, ptr %slot
  %absent = icmp eq ptr %pointer, null
  br i1 %absent, label %stepped, label %shift
shift:
  %shifted = getelementptr i8, ptr %pointer, i64 %far
  store ptr %shifted, ptr %slot
  br label %stepped
stepped:
  %more = add i64 %i, 1
  br label %step
moved:
  br label %next
out:
  ret void
}

; The level that a context was opened for; null for anything that is no open context of this bundle.
define internal ptr @level_of(ptr %context) {
entry:
  %none = icmp eq ptr %context, null
  br i1 %none, label %bad, label %read
read:
  %magic = load i64, ptr %context, align 8
  %mine = icmp eq i64 %magic, {{ magic }}
  br i1 %mine, label %number, label %bad
number:
  %level.p = getelementptr %context, ptr %context, i64 0, i32 1
  %level = load i64, ptr %level.p, align 8
  %known = icmp ult i64 %level, {{ levels }}
  br i1 %known, label %good, label %bad
good:
  %found = getelementptr %level, ptr @levels, i64 %level
  ret ptr %found
bad:
  ret ptr null
}

; 0 or 3: whether a batch can be served; `any` is 1 when every size can.
define internal i32 @check_batch(i64 %batch, i64 %any) {
  %negative = icmp slt i64 %batch, 0
  %huge = icmp sgt i64 %batch, 2147483647
  %nominal = icmp ne i64 %batch, {{ nominal }}
  %fixed = icmp eq i64 %any, 0
  %other = and i1 %nominal, %fixed
  %out = or i1 %negative, %huge
  %bad = or i1 %out, %other
  %code = select i1 %bad, i32 3, i32 0
  ret i32 %code
}

; One round of splitmix64 (Steele, Lea and Flood 2014) over a state and a value.
define internal i64 @mix(i64 %state, i64 %value) {
  %both = xor i64 %state, %value
  %a = add i64 %both, -7046029254386353131
  %b = lshr i64 %a, 30
  %c = xor i64 %a, %b
  %d = mul i64 %c, -4658895280553007687
  %e = lshr i64 %d, 27
  %f = xor i64 %d, %e
  %g = mul i64 %f, -7723592293110705685
  %h = lshr i64 %g, 31
  %i = xor i64 %g, %h
  ret i64 %i
}

; Write the seeds of all random layers: number n takes mix(seed, n), as training in Python does.
define internal void @seed(ptr %work, i64 %seed) {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %more, %put ]
  %last = icmp uge i64 %i, {{ seeds }}
  br i1 %last, label %out, label %put
put:
  %value = call i64 @mix(i64 %seed, i64 %i)
  %to = getelementptr i64, ptr %work, i64 %i
  store i64 %value, ptr %to, align 8
  %more = add i64 %i, 1
  br label %next
out:
  ret void
}

; One span: 0, 4 (null), 5 (too small) or 6 (alignment).
define internal i32 @check_span(ptr %span, i64 %bytes, i64 %alignment) {
entry:
  %none = icmp eq ptr %span, null
  br i1 %none, label %null, label %read
read:
  %data = load ptr, ptr %span, align 8
  %size.p = getelementptr %span, ptr %span, i64 0, i32 1
  %size = load i64, ptr %size.p, align 8
  %empty = icmp eq i64 %bytes, 0
  br i1 %empty, label %good, label %some
some:
  %nothing = icmp eq ptr %data, null
  br i1 %nothing, label %null, label %measure
measure:
  %small = icmp slt i64 %size, %bytes
  br i1 %small, label %short, label %align
align:
  %address = ptrtoint ptr %data to i64
  %mask = sub i64 %alignment, 1
  %rest = and i64 %address, %mask
  %aligned = icmp eq i64 %rest, 0
  br i1 %aligned, label %good, label %crooked
good:
  ret i32 0
null:
  ret i32 4
short:
  ret i32 5
crooked:
  ret i32 6
}

; The spans of a group of ports for a batch; the first problem counts.
define internal i32 @check_ports(ptr %spans, ptr %ports, i64 %count, i64 %batch) {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %more, %fine ]
  %last = icmp uge i64 %i, %count
  br i1 %last, label %good, label %one
one:
  %none = icmp eq ptr %spans, null
  br i1 %none, label %null, label %look
look:
  %port = getelementptr %port, ptr %ports, i64 %i
  %sample = load i64, ptr %port
  %beside.p = getelementptr %port, ptr %port, i64 0, i32 1
  %beside = load i64, ptr %beside.p
  %alignment.p = getelementptr %port, ptr %port, i64 0, i32 2
  %alignment = load i64, ptr %alignment.p
  %batched = mul i64 %sample, %batch
  %bytes = add i64 %batched, %beside
  %span = getelementptr %span, ptr %spans, i64 %i
  %code = call i32 @check_span(ptr %span, i64 %bytes, i64 %alignment)
  %ok = icmp eq i32 %code, 0
  br i1 %ok, label %fine, label %bad
fine:
  %more = add i64 %i, 1
  br label %next
good:
  ret i32 0
null:
  ret i32 4
bad:
  ret i32 %code
}

; The data of spans as a door takes them: one pointer, or an array of pointers written to `array`.
define internal ptr @pointers(ptr %spans, i64 %count, ptr %array) {
entry:
  %none = icmp eq ptr %spans, null
  %zero = icmp eq i64 %count, 0
  %absent = or i1 %none, %zero
  br i1 %absent, label %null, label %some
some:
  %single = icmp eq i64 %count, 1
  br i1 %single, label %one, label %next
one:
  %data = load ptr, ptr %spans, align 8
  ret ptr %data
next:
  %i = phi i64 [ 0, %some ], [ %more, %put ]
  %last = icmp uge i64 %i, %count
  br i1 %last, label %out, label %put
put:
  %span = getelementptr %span, ptr %spans, i64 %i
  %item = load ptr, ptr %span, align 8
  %to = getelementptr ptr, ptr %array, i64 %i
  store ptr %item, ptr %to, align 8
  %more = add i64 %i, 1
  br label %next
out:
  ret ptr %array
null:
  ret ptr null
}

; The data of a span that may be left out; `bytes` and `alignment` hold when it is there.
define internal i32 @check_optional(ptr %span, i64 %bytes, i64 %alignment) {
entry:
  %none = icmp eq ptr %span, null
  br i1 %none, label %good, label %look
look:
  %code = call i32 @check_span(ptr %span, i64 %bytes, i64 %alignment)
  ret i32 %code
good:
  ret i32 0
}

define internal ptr @data_of(ptr %span) {
entry:
  %none = icmp eq ptr %span, null
  br i1 %none, label %null, label %read
read:
  %data = load ptr, ptr %span, align 8
  ret ptr %data
null:
  ret ptr null
}

; 0, or 7 for a parallel structure that cannot be used.
define internal i32 @check_parallel(ptr %parallel) {
entry:
  %none = icmp eq ptr %parallel, null
  br i1 %none, label %good, label %look
look:
  %workers.p = getelementptr %parallel, ptr %parallel, i64 0, i32 1
  %workers = load i32, ptr %workers.p
  %few = icmp slt i32 %workers, 1
  %run.p = getelementptr %parallel, ptr %parallel, i64 0, i32 2
  %run = load ptr, ptr %run.p
  %idle = icmp eq ptr %run, null
  %bad = or i1 %few, %idle
  %code = select i1 %bad, i32 7, i32 0
  ret i32 %code
good:
  ret i32 0
}

define internal i32 @workers_of(ptr %parallel) {
entry:
  %none = icmp eq ptr %parallel, null
  br i1 %none, label %one, label %look
look:
  %workers.p = getelementptr %parallel, ptr %parallel, i64 0, i32 1
  %workers = load i32, ptr %workers.p
  ret i32 %workers
one:
  ret i32 1
}

; The first code that is not 0, or 0.
define internal i32 @first(i32 %a, i32 %b) {
  %ok = icmp eq i32 %a, 0
  %code = select i1 %ok, i32 %b, i32 %a
  ret i32 %code
}
