/* Fills an input, runs {{ name }} and prints what came out.

     cc main.c lib{{ name }}.a -lpthread -o example && ./example

   Arguments: batch, number of threads. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "{{ name }}.h"

/* Zeroed memory that begins at a multiple of {{ upper }}_ALIGNMENT. */
static void *memory(int64_t bytes, void **raw) {
  char *start;
  if (bytes < 0) {
    fprintf(stderr, "{{ name }}: this batch, or this number of threads, is not served\n");
    exit(1);
  }
  start = (char *)calloc(1, (size_t)bytes + {{ upper }}_ALIGNMENT);
  if (start == NULL) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  *raw = start;
  return start + ({{ upper }}_ALIGNMENT - (uintptr_t)start % {{ upper }}_ALIGNMENT);
}

static void check(int code) {
  if (code != {{ upper }}_OK) {
    fprintf(stderr, "{{ name }}: %s\n", {{ name }}_error_text(code));
    exit(1);
  }
}

static uint32_t random_bits;

/* A number in -0.5..0.5, the same on every machine. */
static double draw(void) {
  random_bits = random_bits * 1664525u + 1013904223u;
  return (double)(random_bits >> 8) / 16777216.0 - 0.5;
}

{{ fillers }}
/* Every byte counts: equal sums are equal bits. */
static void show(const char *name, const void *data, int64_t bytes) {
  const unsigned char *at = (const unsigned char *)data;
  uint64_t sum = UINT64_C(14695981039346656037);
  int64_t i;
  for (i = 0; i < bytes; i++) sum = (sum ^ at[i]) * UINT64_C(1099511628211);
  printf("%s %016" PRIx64 "\n", name, sum);
}
{{ first }}
int main(int argc, char **argv) {
  int64_t batch = argc > 1 ? (int64_t)atol(argv[1]) : {{ upper }}_BATCH;
  int workers = argc > 2 ? atoi(argv[2]) : 1;
  void *freed[{{ buffers }}];
  int used = 0;
  {{ name }}_parallel parallel;
  const {{ name }}_parallel *threads = NULL;
  void *pool = NULL;
  void *context = memory({{ name }}_context_bytes(), &freed[used++]);
  void *packed, *workspace;
{{ declarations }}

  check({{ name }}_open(context));
  packed = memory({{ name }}_packed_bytes(context), &freed[used++]);
  workspace = memory({{ name }}_workspace_bytes(context, batch, workers), &freed[used++]);
  if (workers > 1) {
    pool = memory({{ name }}_pool_bytes(), &freed[used++]);
    check({{ name }}_pool_start(pool, workers, &parallel));
    threads = &parallel;
  }

  random_bits = 1;
{{ setup }}

{{ forward }}
{{ backward }}
  printf("{{ name }} ran on {{ shown }} for %s\n", {{ name }}_target(context));
  if (pool != NULL) {{ name }}_pool_stop(pool);
  while (used > 0) free(freed[--used]);
  return 0;
}
