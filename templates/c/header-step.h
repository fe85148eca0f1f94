
/* One step of training on {{ upper }}_BATCH samples, no other batch, by
     {{ optimizer }}
   on
     {{ loss }}
   `packed` holds these weights, packed; afterwards both hold the new ones. `optimizer_state` is
   {{ upper }}_OPTIMIZER_BYTES long and zero at the beginning. hyper: {{ hyper }}. Random layers draw
   from `seed`, another one for each step; {{ name }}_step_seed gives what convgen's own training with
   `seed` takes in step number `step`, counted from 0. */
#define {{ upper }}_OPTIMIZER_BYTES {{ optimizer_bytes }}
uint64_t {{ name }}_step_seed(uint64_t seed, uint64_t step);
int {{ name }}_step(const void *context, int64_t batch, {{ type_x }}x, const {{ type_labels }} *labels,
    {{ type_step_weights }}weights, void *packed, void *optimizer_state, {{ type_state }}state,
    const {{ element }} *hyper, uint64_t seed, void *workspace,
    const {{ name }}_parallel *parallel, {{ element }} *loss);
int {{ name }}_step_checked(const {{ name }}_span *context, int64_t batch,
    const {{ name }}_span *x, const {{ name }}_span *labels, const {{ name }}_span *weights,
    const {{ name }}_span *packed, const {{ name }}_span *optimizer_state,
    const {{ name }}_span *state, const {{ name }}_span *hyper, uint64_t seed,
    const {{ name }}_span *workspace, const {{ name }}_parallel *parallel,
    const {{ name }}_span *loss);
