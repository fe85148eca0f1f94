
define i32 @{{ name }}_backward(ptr %context, i64 %batch, ptr %x, ptr %dy, ptr %packed, ptr %saved, ptr %dx, ptr %grads, ptr %work, ptr %parallel) {
entry:
  %bases = alloca [{{ slots }} x ptr], align 8
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  br i1 %closed, label %bad, label %count
count:
  %code = call i32 @check_batch(i64 %batch, i64 {{ any_train }})
  %fits = icmp eq i32 %code, 0
  br i1 %fits, label %good, label %bad
good:
  call void @llvm.memset.p0.i64(ptr %bases, i8 0, i64 {{ bases_bytes }}, i1 false)
  call void @bind(ptr %bases, i64 {{ slot_packed }}, i64 1, ptr %packed)
  call void @bind(ptr %bases, i64 {{ slot_saved }}, i64 1, ptr %saved)
  call void @bind(ptr %bases, i64 {{ slot_work }}, i64 1, ptr %work)
  call void @bind(ptr %bases, i64 {{ slot_constants }}, i64 1, ptr @constants)
  call void @bind(ptr %bases, i64 {{ slot_x }}, i64 {{ x }}, ptr %x)
  call void @bind(ptr %bases, i64 {{ slot_dy }}, i64 {{ dy }}, ptr %dy)
  call void @bind(ptr %bases, i64 {{ slot_dx }}, i64 {{ dx }}, ptr %dx)
  call void @bind(ptr %bases, i64 {{ slot_grad }}, i64 {{ grads }}, ptr %grads)
  call void @bind(ptr %bases, i64 {{ slot_sum }}, i64 {{ grads }}, ptr %grads)
  %end.p = getelementptr %level, ptr %level, i64 0, i32 7
  %end = load i64, ptr %end.p
  %scratch = getelementptr i8, ptr %work, i64 %end
  %none = icmp eq ptr %dx, null
  %optional = select i1 %none, i64 0, i64 1
  %empty = icmp eq i64 %batch, 0
  br i1 %empty, label %clear, label %some
clear:
  call void @run(ptr %level, i64 8, ptr %bases, ptr %scratch, i64 1, ptr %parallel)
  ret i32 0
some:
  call void @cut(ptr %level, i64 5, i64 %batch, ptr %bases, ptr %scratch, i64 %optional, i64 1, ptr %parallel)
  ret i32 0
bad:
  %problem = phi i32 [ 1, %entry ], [ %code, %count ]
  ret i32 %problem
}

define i32 @{{ name }}_backward_checked(ptr %context, i64 %batch, ptr %x, ptr %dy, ptr %packed, ptr %saved, ptr %dx, ptr %grads, ptr %work, ptr %parallel) {
entry:
  %x.array = alloca [{{ x_least }} x ptr], align 8
  %dy.array = alloca [{{ dy_least }} x ptr], align 8
  %dx.array = alloca [{{ dx_least }} x ptr], align 8
  %grads.array = alloca [{{ grads_least }} x ptr], align 8
  %ctx = call ptr @data_of(ptr %context)
  %a = call i32 @check_span(ptr %context, i64 64, i64 8)
  %a.ok = icmp eq i32 %a, 0
  br i1 %a.ok, label %open, label %bad
open:
  %bytes = call i64 @{{ name }}_packed_bytes(ptr %ctx)
  %closed = icmp slt i64 %bytes, 0
  br i1 %closed, label %bad, label %count
count:
  %b = call i32 @check_batch(i64 %batch, i64 {{ any_train }})
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
  %g = call i32 @check_span(ptr %saved, i64 %saved.bytes, i64 64)
  %h = call i32 @check_ports(ptr %x, ptr @ports.x, i64 {{ x }}, i64 %batch)
  %i = call i32 @check_ports(ptr %dy, ptr @ports.dy, i64 {{ dy }}, i64 %batch)
  %j = call i32 @check_ports(ptr %grads, ptr @ports.grad, i64 {{ grads }}, i64 %batch)
  %k = call i32 @first(i32 %h, i32 %i)
  %l = call i32 @first(i32 %k, i32 %e)
  %m = call i32 @first(i32 %l, i32 %g)
  %n = call i32 @first(i32 %m, i32 %j)
  %o = call i32 @first(i32 %n, i32 %f)
  %none = icmp eq ptr %dx, null
  br i1 %none, label %decide, label %inputs
inputs:
  %q = call i32 @check_ports(ptr %dx, ptr @ports.dx, i64 {{ dx }}, i64 %batch)
  br label %decide
decide:
  %r = phi i32 [ 0, %look ], [ %q, %inputs ]
  %s = call i32 @first(i32 %o, i32 %r)
  %s.ok = icmp eq i32 %s, 0
  br i1 %s.ok, label %good, label %bad
good:
  %px = call ptr @pointers(ptr %x, i64 {{ x }}, ptr %x.array)
  %pdy = call ptr @pointers(ptr %dy, i64 {{ dy }}, ptr %dy.array)
  %pdx = call ptr @pointers(ptr %dx, i64 {{ dx }}, ptr %dx.array)
  %pgrads = call ptr @pointers(ptr %grads, i64 {{ grads }}, ptr %grads.array)
  %ppacked = call ptr @data_of(ptr %packed)
  %psaved = call ptr @data_of(ptr %saved)
  %pwork = call ptr @data_of(ptr %work)
  %code = call i32 @{{ name }}_backward(ptr %ctx, i64 %batch, ptr %px, ptr %pdy, ptr %ppacked, ptr %psaved, ptr %pdx, ptr %pgrads, ptr %pwork, ptr %parallel)
  ret i32 %code
bad:
  %problem = phi i32 [ %a, %entry ], [ 1, %open ], [ %d, %count ], [ %s, %decide ]
  ret i32 %problem
}
