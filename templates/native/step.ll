
; The seed that training in Python takes for a step.
define i64 @{{ name }}_step_seed(i64 %seed, i64 %step) {
  %first = call i64 @mix(i64 0, i64 %seed)
  %both = call i64 @mix(i64 %first, i64 %step)
  ret i64 %both
}

define i32 @{{ name }}_step(ptr %context, i64 %batch, ptr %x, ptr %labels, ptr %weights, ptr %packed, ptr %optimizer, ptr %state, ptr %hyper, i64 %seed, ptr %work, ptr %parallel, ptr %loss) {
entry:
  %bases = alloca [{{ slots }} x ptr], align 8
  %level = call ptr @level_of(ptr %context)
  %closed = icmp eq ptr %level, null
  br i1 %closed, label %bad, label %count
count:
  %code = call i32 @check_batch(i64 %batch, i64 0)
  %fits = icmp eq i32 %code, 0
  br i1 %fits, label %good, label %bad
good:
  call void @llvm.memset.p0.i64(ptr %bases, i8 0, i64 {{ bases_bytes }}, i1 false)
  call void @seed(ptr %work, i64 %seed)
  call void @bind(ptr %bases, i64 {{ slot_packed }}, i64 1, ptr %packed)
  call void @bind(ptr %bases, i64 {{ slot_work }}, i64 1, ptr %work)
  call void @bind(ptr %bases, i64 {{ slot_seeds }}, i64 1, ptr %work)
  call void @bind(ptr %bases, i64 {{ slot_constants }}, i64 1, ptr @constants)
  call void @bind(ptr %bases, i64 {{ slot_labels }}, i64 1, ptr %labels)
  call void @bind(ptr %bases, i64 {{ slot_hyper }}, i64 1, ptr %hyper)
  call void @bind(ptr %bases, i64 {{ slot_loss }}, i64 1, ptr %loss)
  call void @bind(ptr %bases, i64 {{ slot_optimizer }}, i64 1, ptr %optimizer)
  call void @bind(ptr %bases, i64 {{ slot_x }}, i64 {{ x }}, ptr %x)
  call void @bind(ptr %bases, i64 {{ slot_state }}, i64 {{ states }}, ptr %state)
  call void @bind(ptr %bases, i64 {{ slot_weight }}, i64 {{ weights }}, ptr %weights)
  %end.p = getelementptr %level, ptr %level, i64 0, i32 7
  %end = load i64, ptr %end.p
  %scratch = getelementptr i8, ptr %work, i64 %end
  call void @run(ptr %level, i64 9, ptr %bases, ptr %scratch, i64 1, ptr %parallel)
  call void @run(ptr %level, i64 0, ptr %bases, ptr %scratch, i64 1, ptr %parallel)
  ret i32 0
bad:
  %problem = phi i32 [ 1, %entry ], [ %code, %count ]
  ret i32 %problem
}

define i32 @{{ name }}_step_checked(ptr %context, i64 %batch, ptr %x, ptr %labels, ptr %weights, ptr %packed, ptr %optimizer, ptr %state, ptr %hyper, i64 %seed, ptr %work, ptr %parallel, ptr %loss) {
entry:
  %x.array = alloca [{{ x_least }} x ptr], align 8
  %weights.array = alloca [{{ weights_least }} x ptr], align 8
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
  %b = call i32 @check_batch(i64 %batch, i64 0)
  %c = call i32 @check_parallel(ptr %parallel)
  %d = call i32 @first(i32 %b, i32 %c)
  %d.ok = icmp eq i32 %d, 0
  br i1 %d.ok, label %look, label %bad
look:
  %workers = call i32 @workers_of(ptr %parallel)
  %work.bytes = call i64 @{{ name }}_workspace_bytes(ptr %ctx, i64 %batch, i32 %workers)
  %e = call i32 @check_span(ptr %packed, i64 %bytes, i64 64)
  %f = call i32 @check_span(ptr %work, i64 %work.bytes, i64 64)
  %g = call i32 @check_span(ptr %optimizer, i64 {{ optimizer_bytes }}, i64 {{ element }})
  %h = call i32 @check_ports(ptr %x, ptr @ports.x, i64 {{ x }}, i64 %batch)
  %i = call i32 @check_ports(ptr %labels, ptr @ports.labels, i64 1, i64 %batch)
  %j = call i32 @check_ports(ptr %weights, ptr @ports.weight, i64 {{ weights }}, i64 %batch)
  %k = call i32 @check_ports(ptr %state, ptr @ports.state, i64 {{ states }}, i64 %batch)
  %l = call i32 @check_span(ptr %hyper, i64 {{ hyper_bytes }}, i64 {{ element }})
  %m = call i32 @check_span(ptr %loss, i64 {{ element }}, i64 {{ element }})
  %n = call i32 @first(i32 %h, i32 %i)
  %o = call i32 @first(i32 %n, i32 %j)
  %p = call i32 @first(i32 %o, i32 %e)
  %q = call i32 @first(i32 %p, i32 %g)
  %r = call i32 @first(i32 %q, i32 %k)
  %s = call i32 @first(i32 %r, i32 %l)
  %t = call i32 @first(i32 %s, i32 %f)
  %u = call i32 @first(i32 %t, i32 %m)
  %u.ok = icmp eq i32 %u, 0
  br i1 %u.ok, label %good, label %bad
good:
  %px = call ptr @pointers(ptr %x, i64 {{ x }}, ptr %x.array)
  %pweights = call ptr @pointers(ptr %weights, i64 {{ weights }}, ptr %weights.array)
  %pstate = call ptr @pointers(ptr %state, i64 {{ states }}, ptr %state.array)
  %plabels = call ptr @data_of(ptr %labels)
  %ppacked = call ptr @data_of(ptr %packed)
  %poptimizer = call ptr @data_of(ptr %optimizer)
  %phyper = call ptr @data_of(ptr %hyper)
  %pwork = call ptr @data_of(ptr %work)
  %ploss = call ptr @data_of(ptr %loss)
  %code = call i32 @{{ name }}_step(ptr %ctx, i64 %batch, ptr %px, ptr %plabels, ptr %pweights, ptr %ppacked, ptr %poptimizer, ptr %pstate, ptr %phyper, i64 %seed, ptr %pwork, ptr %parallel, ptr %ploss)
  ret i32 %code
bad:
  %problem = phi i32 [ %a, %entry ], [ 1, %open ], [ %d, %count ], [ %u, %look ]
  ret i32 %problem
}
