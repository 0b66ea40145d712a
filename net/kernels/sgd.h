/* SGD's update of several arrays in one pass over the memory:

       diff <- rate (diff + decay weight) + momentum history;  history <- diff;  weight <- weight - diff

   A template, like batch_norm.h: kernels.c defines REAL, NAME, TARGET. */

#if !defined(REAL) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#ifndef SGD_H
#define SGD_H

#include "common.h"

enum { UPDATED_AT_ONCE = 16384 };

#endif

TARGET static void NAME(sgd_block)(int64_t count, REAL *restrict weight, REAL *restrict diff,
                                   REAL *restrict history, REAL decay, REAL momentum, REAL rate)
{
    for (int64_t i = 0; i < count; i++) {
        /* Without decay an infinite weight must not count: 0 times it is NaN. */
        REAL gradient = decay != 0 ? diff[i] + decay * weight[i] : diff[i];
        REAL change = rate * gradient + momentum * history[i];
        diff[i] = change;
        history[i] = change;
        weight[i] -= change;
    }
}

/* Arrays number 0 to count - 1, of these sizes. */
void NAME(sgd)(int64_t count, const int64_t *sizes, REAL *const *weights, REAL *const *diffs,
               REAL *const *histories, double decay, double momentum, double rate, int threads)
{
#pragma omp parallel num_threads(threads)
    for (int64_t array = 0; array < count; array++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < sizes[array]; start += UPDATED_AT_ONCE)
            NAME(sgd_block)
            (minimum(sizes[array] - start, UPDATED_AT_ONCE), weights[array] + start, diffs[array] + start,
             histories[array] + start, (REAL)decay, (REAL)momentum, (REAL)rate);
    }
}
