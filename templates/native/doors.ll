; The doors every bundle has.

@error.texts = internal constant [10 x ptr] [{{ error_pointers }}]
{{ error_strings }}
define i32 @{{ name }}_abi_version() {
  ret i32 {{ abi }}
}

define i64 @{{ name }}_context_bytes() {
  ret i64 64
}

define ptr @{{ name }}_error_text(i32 %code) {
  %known = icmp ult i32 %code, 9
  %number = select i1 %known, i32 %code, i32 9
  %wide = zext i32 %number to i64
  %text.p = getelementptr ptr, ptr @error.texts, i64 %wide
  %text = load ptr, ptr %text.p
  ret ptr %text
}

define internal i32 @open_level(ptr %context, i64 %level) {
  %magic = getelementptr %context, ptr %context, i64 0, i32 0
  store i64 {{ magic }}, ptr %magic, align 8
  %number = getelementptr %context, ptr %context, i64 0, i32 1
  store i64 %level, ptr %number, align 8
  ret i32 0
}

define i32 @{{ name }}_open_level(ptr %context, i32 %wanted) {
entry:
  %none = icmp eq ptr %context, null
  br i1 %none, label %null, label %look
look:
  %known = icmp ult i32 %wanted, {{ levels }}
  br i1 %known, label %ask, label %bad
ask:
  %level = zext i32 %wanted to i64
  %needs.p = getelementptr %level, ptr @levels, i64 %level
  %needs = load i64, ptr %needs.p
  %has = call i64 @cpu()
  %fits = icmp uge i64 %has, %needs
  br i1 %fits, label %good, label %bad
good:
  %code = call i32 @open_level(ptr %context, i64 %level)
  ret i32 0
null:
  ret i32 4
bad:
  ret i32 2
}

define i32 @{{ name }}_open(ptr %context) {
entry:
  %none = icmp eq ptr %context, null
  br i1 %none, label %null, label %ask
ask:
  %has = call i64 @cpu()
  br label %next
next:
  %level = phi i64 [ {{ last_level }}, %ask ], [ %less, %lower ]
  %needs.p = getelementptr %level, ptr @levels, i64 %level
  %needs = load i64, ptr %needs.p
  %fits = icmp uge i64 %has, %needs
  br i1 %fits, label %good, label %lower
lower:
  %less = sub i64 %level, 1
  %ended = icmp slt i64 %less, 0
  br i1 %ended, label %bad, label %next
good:
  %code = call i32 @open_level(ptr %context, i64 %level)
  ret i32 0
null:
  ret i32 4
bad:
  ret i32 2
}

define ptr @{{ name }}_target(ptr %context) {
entry:
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  br i1 %closed, label %bad, label %good
good:
  %text.p = getelementptr %level, ptr %level, i64 0, i32 9
  %text = load ptr, ptr %text.p
  ret ptr %text
bad:
  ret ptr null
}

define i64 @{{ name }}_packed_bytes(ptr %context) {
entry:
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  br i1 %closed, label %bad, label %good
good:
  %bytes.p = getelementptr %level, ptr %level, i64 0, i32 4
  %bytes = load i64, ptr %bytes.p
  ret i64 %bytes
bad:
  ret i64 -1
}

define i64 @{{ name }}_workspace_bytes(ptr %context, i64 %batch, i32 %workers) {
entry:
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  %few = icmp slt i32 %workers, 1
  %bad.one = or i1 %closed, %few
  %negative = icmp slt i64 %batch, 0
  %bad.two = or i1 %bad.one, %negative
  br i1 %bad.two, label %bad, label %good
good:
  %work.p = getelementptr %level, ptr %level, i64 0, i32 7
  %work = load i64, ptr %work.p
  %scratch.p = getelementptr %level, ptr %level, i64 0, i32 8
  %scratch = load i64, ptr %scratch.p
  %many = zext i32 %workers to i64
  %all = mul i64 %many, %scratch
  %bytes = add i64 %work, %all
  ret i64 %bytes
bad:
  ret i64 -1
}

define i64 @{{ name }}_saved_bytes(ptr %context, i64 %batch) {
entry:
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  %code = call i32 @check_batch(i64 %batch, i64 {{ any_train }})
  %unfit = icmp ne i32 %code, 0
  %no = or i1 %closed, %unfit
  br i1 %no, label %bad, label %good
good:
  %nominal.p = getelementptr %level, ptr %level, i64 0, i32 5
  %nominal = load i64, ptr %nominal.p
  %single.p = getelementptr %level, ptr %level, i64 0, i32 6
  %single = load i64, ptr %single.p
  %whole = udiv i64 %batch, {{ nominal }}
  %rest = urem i64 %batch, {{ nominal }}
  %a = mul i64 %whole, %nominal
  %b = mul i64 %rest, %single
  %bytes = add i64 %a, %b
  %none = icmp eq i64 %bytes, 0
  %least = select i1 %none, i64 64, i64 %bytes
  ret i64 %least
bad:
  ret i64 -1
}

define void @{{ name }}_weight_pointers(ptr %block, ptr %pointers) {
  call void @scatter(ptr %block, ptr @weight.offsets, i64 {{ weights }}, ptr %pointers)
  ret void
}

define i32 @{{ name }}_pack(ptr %context, ptr %weights, ptr %packed) {
entry:
  %bases = alloca [{{ slots }} x ptr], align 8
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  br i1 %closed, label %bad, label %good
good:
  call void @llvm.memset.p0.i64(ptr %bases, i8 0, i64 {{ bases_bytes }}, i1 false)
  %packed.p = getelementptr ptr, ptr %bases, i64 {{ slot_packed }}
  store ptr %packed, ptr %packed.p
  %weights.p = getelementptr ptr, ptr %bases, i64 {{ slot_weight }}
  {{ embedded_default }}
  %end.p = getelementptr %level, ptr %level, i64 0, i32 3
  %end = load i64, ptr %end.p
  %scratch = getelementptr i8, ptr %packed, i64 %end
  call void @run(ptr %level, i64 0, ptr %bases, ptr %scratch, i64 1, ptr null)
  ret i32 0
bad:
  ret i32 1
}

define i32 @{{ name }}_pack_checked(ptr %context, ptr %weights, ptr %packed) {
entry:
  %array = alloca [{{ weights_least }} x ptr], align 8
  %ctx = call ptr @data_of(ptr %context)
  %a = call i32 @check_span(ptr %context, i64 64, i64 8)
  %a.ok = icmp eq i32 %a, 0
  br i1 %a.ok, label %open, label %bad
open:
  %bytes = call i64 @{{ name }}_packed_bytes(ptr %ctx)
  %closed = icmp slt i64 %bytes, 0
  br i1 %closed, label %bad, label %look
look:
  %b = call i32 @check_span(ptr %packed, i64 %bytes, i64 64)
  {{ embedded_check }}
  %d = call i32 @first(i32 %b, i32 %c)
  %d.ok = icmp eq i32 %d, 0
  br i1 %d.ok, label %good, label %bad
good:
  %w = call ptr @pointers(ptr %weights, i64 {{ weights }}, ptr %array)
  %p = call ptr @data_of(ptr %packed)
  %code = call i32 @{{ name }}_pack(ptr %ctx, ptr %w, ptr %p)
  ret i32 %code
bad:
  %problem = phi i32 [ %a, %entry ], [ 1, %open ], [ %d, %look ]
  ret i32 %problem
}

define i32 @{{ name }}_forward(ptr %context, i64 %batch, ptr %x, ptr %packed, ptr %state, i64 %seed, ptr %y, ptr %saved, ptr %work, ptr %parallel) {
entry:
  %bases = alloca [{{ slots }} x ptr], align 8
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  br i1 %closed, label %bad, label %look
look:
  %infers = icmp eq ptr %saved, null
  %any = select i1 %infers, i64 {{ any_infer }}, i64 {{ any_train }}
  %which = select i1 %infers, i64 1, i64 3
  %trains = xor i1 %infers, true
  %absent = and i1 %trains, {{ no_backward }}
  br i1 %absent, label %bad, label %count
count:
  %code = call i32 @check_batch(i64 %batch, i64 %any)
  %fits = icmp eq i32 %code, 0
  br i1 %fits, label %good, label %bad
good:
  call void @llvm.memset.p0.i64(ptr %bases, i8 0, i64 {{ bases_bytes }}, i1 false)
  call void @seed(ptr %work, i64 %seed)
  call void @bind(ptr %bases, i64 {{ slot_packed }}, i64 1, ptr %packed)
  call void @bind(ptr %bases, i64 {{ slot_saved }}, i64 1, ptr %saved)
  call void @bind(ptr %bases, i64 {{ slot_work }}, i64 1, ptr %work)
  call void @bind(ptr %bases, i64 {{ slot_seeds }}, i64 1, ptr %work)
  call void @bind(ptr %bases, i64 {{ slot_constants }}, i64 1, ptr @constants)
  call void @bind(ptr %bases, i64 {{ slot_x }}, i64 {{ x }}, ptr %x)
  call void @bind(ptr %bases, i64 {{ slot_y }}, i64 {{ y }}, ptr %y)
  call void @bind(ptr %bases, i64 {{ slot_state }}, i64 {{ states }}, ptr %state)
  %end.p = getelementptr %level, ptr %level, i64 0, i32 7
  %end = load i64, ptr %end.p
  %scratch = getelementptr i8, ptr %work, i64 %end
  call void @cut(ptr %level, i64 %which, i64 %batch, ptr %bases, ptr %scratch, i64 1, i64 0, ptr %parallel)
  ret i32 0
bad:
  %problem = phi i32 [ 1, %entry ], [ 8, %look ], [ %code, %count ]
  ret i32 %problem
}

define i32 @{{ name }}_forward_checked(ptr %context, i64 %batch, ptr %x, ptr %packed, ptr %state, i64 %seed, ptr %y, ptr %saved, ptr %work, ptr %parallel) {
entry:
  %x.array = alloca [{{ x_least }} x ptr], align 8
  %y.array = alloca [{{ y_least }} x ptr], align 8
  %state.array = alloca [{{ states_least }} x ptr], align 8
  %ctx = call ptr @data_of(ptr %context)
  %a = call i32 @check_span(ptr %context, i64 64, i64 8)
  %a.ok = icmp eq i32 %a, 0
  br i1 %a.ok, label %open, label %bad
open:
  %bytes = call i64 @{{ name }}_packed_bytes(ptr %ctx)
  %closed = icmp slt i64 %bytes, 0
  br i1 %closed, label %bad, label %count
count:
  %infers = icmp eq ptr %saved, null
  %any = select i1 %infers, i64 {{ any_infer }}, i64 {{ any_train }}
  %b = call i32 @check_batch(i64 %batch, i64 %any)
  %c = call i32 @check_parallel(ptr %parallel)
  %d = call i32 @first(i32 %b, i32 %c)
  %d.ok = icmp eq i32 %d, 0
  br i1 %d.ok, label %look, label %bad
look:
  %workers = call i32 @workers_of(ptr %parallel)
  %work.bytes = call i64 @{{ name }}_workspace_bytes(ptr %ctx, i64 %batch, i32 %workers)
  %saved.bytes = call i64 @{{ name }}_saved_bytes(ptr %ctx, i64 %batch)
  %e = call i32 @check_span(ptr %packed, i64 %bytes, i64 64)
  %f = call i32 @check_span(ptr %work, i64 %work.bytes, i64 64)
  %g = call i32 @check_optional(ptr %saved, i64 %saved.bytes, i64 64)
  %h = call i32 @check_ports(ptr %x, ptr @ports.x, i64 {{ x }}, i64 %batch)
  %i = call i32 @check_ports(ptr %y, ptr @ports.y, i64 {{ y }}, i64 %batch)
  %j = call i32 @check_ports(ptr %state, ptr @ports.state, i64 {{ states }}, i64 %batch)
  %k = call i32 @first(i32 %h, i32 %e)
  %l = call i32 @first(i32 %k, i32 %j)
  %m = call i32 @first(i32 %l, i32 %i)
  %n = call i32 @first(i32 %m, i32 %g)
  %o = call i32 @first(i32 %n, i32 %f)
  %o.ok = icmp eq i32 %o, 0
  br i1 %o.ok, label %good, label %bad
good:
  %px = call ptr @pointers(ptr %x, i64 {{ x }}, ptr %x.array)
  %py = call ptr @pointers(ptr %y, i64 {{ y }}, ptr %y.array)
  %pstate = call ptr @pointers(ptr %state, i64 {{ states }}, ptr %state.array)
  %ppacked = call ptr @data_of(ptr %packed)
  %psaved = call ptr @data_of(ptr %saved)
  %pwork = call ptr @data_of(ptr %work)
  %code = call i32 @{{ name }}_forward(ptr %ctx, i64 %batch, ptr %px, ptr %ppacked, ptr %pstate, i64 %seed, ptr %py, ptr %psaved, ptr %pwork, ptr %parallel)
  ret i32 %code
bad:
  %problem = phi i32 [ %a, %entry ], [ 1, %open ], [ %d, %count ], [ %o, %look ]
  ret i32 %problem
}
