/* A C program around a bundle named doors, as a library: many calls in a row, so that a clock sees
   what one of them takes. */
#include "doors.h"

void repeat(int64_t count, const void *context, int64_t batch, const float *x, const void *packed,
            float *y, void *workspace) {
  int64_t i;
  for (i = 0; i < count; i++) {
    if (doors_forward(context, batch, x, packed, NULL, 0, y, NULL, workspace, NULL) != DOORS_OK) return;
  }
}
