/* LRN across channels with beta = 3/4, for blobs of `rows` (N H W) times `channels` numbers:

       base = k + alpha / size * sum_c' x[c']^2              size channels around c
       top  = x / base^(3/4)
       diff = top_diff / base^(3/4) - 2 alpha 3/4 / size * x sum_c' top_diff[c'] x[c'] / base[c']^(7/4)

   base^(3/4) is r sqrt(r) with r = sqrt(base), for which there are vector instructions. Each sum is added up
   anew: no number is added and subtracted again. A template, like batch_norm.h: kernels.c defines BLOB, REAL, NAME
   and TARGET. */

#if !defined(BLOB) || !defined(REAL) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#include "common.h"

/* sums[c] = first + factor * sum of the `size` numbers of `padded` from c on. */
TARGET static void NAME(window_sums)(const REAL *restrict padded, int64_t channels, int64_t size, REAL first,
                                     REAL factor, REAL *restrict sums)
{
    for (int64_t c = 0; c < channels; c++)
        sums[c] = padded[c];
    for (int64_t i = 1; i < size; i++)
        for (int64_t c = 0; c < channels; c++)
            sums[c] += padded[c + i];
    for (int64_t c = 0; c < channels; c++)
        sums[c] = first + factor * sums[c];
}

/* The bases of a row; the numbers of `padded` before and after the channels are 0. */
TARGET static void NAME(lrn_bases)(const BLOB *restrict x, int64_t channels, int64_t size, REAL k,
                                   REAL factor, REAL *restrict padded, REAL *restrict base)
{
    REAL *squares = padded + size / 2;
    for (int64_t c = 0; c < channels; c++)
        squares[c] = LOAD(x[c]) * LOAD(x[c]);
    NAME(window_sums)(padded, channels, size, k, factor, base);
}

TARGET static void NAME(lrn_row)(const BLOB *restrict x, int64_t channels, const REAL *restrict base,
                                 BLOB *restrict top)
{
    for (int64_t c = 0; c < channels; c++) {
        REAL root = (REAL)sqrt(base[c]);
        REAL y = LOAD(x[c]) / (root * (REAL)sqrt(root));
        top[c] = STORE(y);
    }
}

/* Overwrites the bases. */
TARGET static void NAME(lrn_gradient_row)(const BLOB *restrict x, const BLOB *restrict top_diff,
                                          int64_t channels, int64_t size, REAL factor, REAL *restrict padded,
                                          REAL *restrict base, REAL *restrict sums, BLOB *restrict diff)
{
    REAL *ratios = padded + size / 2;
    for (int64_t c = 0; c < channels; c++) {
        REAL root = (REAL)sqrt(base[c]);
        REAL scaled = LOAD(top_diff[c]) / (root * (REAL)sqrt(root));
        ratios[c] = scaled * LOAD(x[c]) / base[c];
        base[c] = scaled;
    }
    NAME(window_sums)(padded, channels, size, 0, factor, sums);
    for (int64_t c = 0; c < channels; c++)
        diff[c] = STORE(base[c] - LOAD(x[c]) * sums[c]);
}

/* The top, or with a top_diff the bottom's diff. Returns whether there was too little memory. */
int NAME(lrn)(const BLOB *x, const BLOB *top_diff, int64_t rows, int64_t channels, int64_t size, double alpha,
              double k, int threads, BLOB *result)
{
    int failed = 0;
    REAL factor = (REAL)(alpha / size), gradient_factor = (REAL)(2 * 0.75 * alpha / size);
    size = minimum(size, 2 * channels - 1); /* a larger window has no more channels */
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        int64_t padded_size = channels + size - 1;
        REAL *padded = calloc(padded_size + 2 * channels, sizeof(REAL));
        failed = padded == NULL;
        REAL *base = padded + padded_size, *sums = base + channels;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            if (failed)
                continue;
            const BLOB *from = x + row * channels;
            BLOB *to = result + row * channels;
            NAME(lrn_bases)(from, channels, size, (REAL)k, factor, padded, base);
            if (top_diff)
                NAME(lrn_gradient_row)
                (from, top_diff + row * channels, channels, size, gradient_factor, padded, base, sums, to);
            else
                NAME(lrn_row)(from, channels, base, to);
        }
        free(padded);
    }
    return failed;
}
