
/* Gradients from dy, of a forward with the same batch and this `saved`. dx may be NULL when it is not
   wanted (of several inputs: all or none). */
int {{ name }}_backward(const void *context, int64_t batch, {{ type_x }}x, {{ type_dy }}dy,
    const void *packed, const void *saved, {{ type_dx }}dx, {{ type_grads }}grads,
    void *workspace, const {{ name }}_parallel *parallel);
int {{ name }}_backward_checked(const {{ name }}_span *context, int64_t batch,
    const {{ name }}_span *x, const {{ name }}_span *dy, const {{ name }}_span *packed,
    const {{ name }}_span *saved, const {{ name }}_span *dx, const {{ name }}_span *grads,
    const {{ name }}_span *workspace, const {{ name }}_parallel *parallel);
