/* {{ name }}: made by convgen {{ version }} for {{ targets }}. This file belongs to its user.

{{ formula }}

   Arrays (row-major, densely packed, aligned to their elements; N is the batch):
{{ arrays }}

   Everything lives in memory of the caller: nothing is allocated, there are no global variables,
   and calls with one context and different buffers may run at the same time. Buffers named packed,
   saved and workspace begin at a multiple of {{ upper }}_ALIGNMENT bytes; what is in them before
   does not matter, and a workspace means nothing after a call. Arrays of one call do not overlap.
   Where a group of arrays above is empty (such as state), its argument is NULL.

   The batch is an argument. It is cut into parts of {{ upper }}_BATCH samples and then single
   samples; gradients to weights are summed over the parts in order, so they do not depend on the
   number of workers. {{ batches }} */

#ifndef {{ upper }}_H
#define {{ upper }}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define {{ upper }}_ABI_VERSION {{ abi }}
#define {{ upper }}_ALIGNMENT 64
#define {{ upper }}_BATCH {{ nominal }}       /* the nominal batch */
#define {{ upper }}_CONTEXT_BYTES 64
#define {{ upper }}_WEIGHTS {{ weights }}     /* arrays that pack takes */
#define {{ upper }}_WEIGHT_BYTES {{ weight_bytes }} /* bytes of a block of all weights, as in a file */
{{ defines }}
/* What functions return; {{ name }}_error_text gives the sentence. */
enum {
  {{ upper }}_OK = 0,
  {{ upper }}_ERROR_CONTEXT = 1,
  {{ upper }}_ERROR_CPU = 2,
  {{ upper }}_ERROR_BATCH = 3,
  {{ upper }}_ERROR_NULL = 4,
  {{ upper }}_ERROR_SIZE = 5,
  {{ upper }}_ERROR_ALIGNMENT = 6,
  {{ upper }}_ERROR_PARALLEL = 7,
  {{ upper }}_ERROR_ABSENT = 8
};

/* A host's parallel range: run must call body for all of 0..extent-1, in pieces of at least `grain`
   (the last may be smaller), each with the number of a worker below `workers`; no two pieces at the
   same time with the same number. It returns when all have returned. NULL instead of the structure:
   everything runs in the caller. The bits are the same for every number of workers. */
typedef struct {{ name }}_parallel {
  void *host;
  int workers;
  void (*run)(void *host, int64_t extent, int64_t grain,
              void (*body)(void *c, int worker, int64_t begin, int64_t end), void *c);
} {{ name }}_parallel;

/* Memory with its size, for the functions that end in _checked: they look at every pointer, size,
   alignment, the batch and `parallel`, and return the first error instead of touching anything.
   Several arrays are an array of spans; where the plain function takes NULL, so do they. */
typedef struct {{ name }}_span {
  void *data;
  int64_t bytes;
} {{ name }}_span;

int {{ name }}_abi_version(void);
const char *{{ name }}_error_text(int code);

/* Open a context in {{ upper }}_CONTEXT_BYTES bytes aligned to 8: picks the best instruction set of
   this processor. It holds no pointers, is only read afterwards and needs no closing.
   {{ name }}_open_level takes number `level` of: {{ targets }}. */
int64_t {{ name }}_context_bytes(void);
int {{ name }}_open(void *context);
int {{ name }}_open_level(void *context, int level);
const char *{{ name }}_target(const void *context);

/* Bytes that the other functions need; -1 for a context that is not open or a batch that is not
   served. */
int64_t {{ name }}_packed_bytes(const void *context);
int64_t {{ name }}_workspace_bytes(const void *context, int64_t batch, int workers);
int64_t {{ name }}_saved_bytes(const void *context, int64_t batch);

/* Bring weights into the order that kernels read. `packed` is all that forward and backward need of
   them. Pointers to the weights in a block of {{ upper }}_WEIGHT_BYTES: {{ name }}_weight_pointers. */
int {{ name }}_pack(const void *context, {{ type_weights }}weights, void *packed);
int {{ name }}_pack_checked(const {{ name }}_span *context, const {{ name }}_span *weights,
    const {{ name }}_span *packed);
void {{ name }}_weight_pointers(const void *block, const void **weights);
{{ embedded }}
/* y from x. With saved == NULL as in inference; else as in training, keeping what backward reads
   (and moving running statistics in `state`). Random layers draw from `seed`: the same seed, the
   same numbers. */
int {{ name }}_forward(const void *context, int64_t batch, {{ type_x }}x, const void *packed,
    {{ type_state }}state, uint64_t seed, {{ type_y }}y, void *saved, void *workspace,
    const {{ name }}_parallel *parallel);
int {{ name }}_forward_checked(const {{ name }}_span *context, int64_t batch,
    const {{ name }}_span *x, const {{ name }}_span *packed, const {{ name }}_span *state,
    uint64_t seed, const {{ name }}_span *y, const {{ name }}_span *saved,
    const {{ name }}_span *workspace, const {{ name }}_parallel *parallel);
