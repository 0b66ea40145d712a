/* The gradient of a convolution's weights.

   diff[o][i][j][c] = sum over n, y, x of bottom[n][y s + i - p][x s + j - p][c] top_diff[n][y][x][o]

   Once the bottom is copied to rows with zeros for padding, the kernel_w * channels numbers under one row of a
   window are adjacent in memory. So for each row i of the kernel this is a product of two matrices. The sums
   over some hundred pixels stay in registers: up to MAX_SIDE of these numbers times up to 2 vectors of outputs.
   A template, like vectors.h. */

#if !defined(VECTOR) || !defined(MAX_SIDE) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#ifndef CONV_WEIGHT_H
#define CONV_WEIGHT_H

#include "conv.h"

enum { JOB_PIXELS = 512, MAX_RECENT_JOBS = 8 };

/* The sums of one thread: `recent` in single precision, which is added to `total` in double precision after
   MAX_RECENT_JOBS jobs. */
typedef struct {
    int64_t size, jobs;
    float *recent;
    double *total;
} Sums;

/* Where the numbers of some pixels are: counts of images, rows and pixels in a row, and the steps in memory
   from one to the next, in the bottom (x) and in the top. */
typedef struct {
    int64_t images, rows, width;
    int64_t x_image_step, x_row_step, x_pixel_step, top_image_step, top_row_step, top_pixel_step;
} Pixels;

/* Copies rows of an image, from `first` on, with zeros for their padding; a row outside the image is zeros. */
static void padded_rows(const Conv *c, const float *image, int64_t first, int64_t rows, int64_t padded_width,
                        float *out)
{
    int64_t left = minimum(c->pad_w, padded_width), inside = minimum(c->width, padded_width - left);
    for (int64_t y = first; y < first + rows; y++, out += padded_width * c->channels) {
        if (y < 0 || y >= c->height) {
            memset(out, 0, padded_width * c->channels * sizeof(float));
            continue;
        }
        memset(out, 0, left * c->channels * sizeof(float));
        memcpy(out + left * c->channels, image + y * c->width * c->channels,
               inside * c->channels * sizeof(float));
        memset(out + (left + inside) * c->channels, 0,
               (padded_width - left - inside) * c->channels * sizeof(float));
    }
}

#endif

TARGET static void NAME(add_recent)(Sums *s)
{
    for (int64_t i = 0; i < s->size; i++)
        s->total[i] += s->recent[i];
    memset(s->recent, 0, s->size * sizeof(float));
    s->jobs = 0;
}

static inline void NAME(count_job)(Sums *s)
{
    if (++s->jobs == MAX_RECENT_JOBS)
        NAME(add_recent)(s);
}

/* out[k][o] += the sum over the pixels of x[k] top_diff[o], for k < side and o < vectors * VECTOR. */
INLINE_TARGET void NAME(add_products)(const int side, const int vectors, const float *x, const float *top_diff,
                                      const Pixels *p, float *out, int64_t out_row)
{
    VEC sums[MAX_SIDE][2] = {0};
    for (int64_t i = 0; i < p->images; i++)
        for (int64_t r = 0; r < p->rows; r++) {
            const float *x_pixel = x + i * p->x_image_step + r * p->x_row_step;
            const float *top_pixel = top_diff + i * p->top_image_step + r * p->top_row_step;
#pragma GCC unroll 4
            for (int64_t w = 0; w < p->width; w++, x_pixel += p->x_pixel_step, top_pixel += p->top_pixel_step)
                NAME(add_outer)(side, vectors, x_pixel, 1, top_pixel, sums);
        }
#pragma GCC unroll 12
    for (int k = 0; k < side; k++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            STORE_VEC(out + k * out_row + VECTOR * v, LOAD_VEC(out + k * out_row + VECTOR * v) + sums[k][v]);
}

typedef void NAME(AddProducts)(const float *, const float *, const Pixels *, float *, int64_t);

#undef ADD_PRODUCTS
#define ADD_PRODUCTS(side, vectors)                                                                            \
    TARGET static void NAME(add_products_##side##_##vectors)(const float *x, const float *top_diff,            \
                                                             const Pixels *p, float *out, int64_t out_row)     \
    {                                                                                                          \
        NAME(add_products)(side, vectors, x, top_diff, p, out, out_row);                                       \
    }

FOR_EACH_SIZE(ADD_PRODUCTS)

static NAME(AddProducts) *const NAME(add_products_table)[2][MAX_SIDE] = SIZE_TABLE(add_products);

/* The number of outputs is a multiple of VECTOR. Returns 0, or 1 if memory cannot be allocated. */
int NAME(conv_weight)(const float *bottom, const float *top_diff, const Conv *c, int threads, float *diff)
{
    int64_t padded_width = (c->top_width - 1) * c->stride_w + c->kernel_w, row = padded_width * c->channels;
    int64_t side = c->kernel_w * c->channels, size = c->kernel_h * side * c->outputs;
    /* A job is some rows of an image, or some whole images. */
    int64_t tile = minimum(c->top_height, JOB_PIXELS / c->top_width > 1 ? JOB_PIXELS / c->top_width : 1);
    int64_t tiles = (c->top_height + tile - 1) / tile, pixels = c->top_height * c->top_width;
    int64_t group = pixels < JOB_PIXELS ? minimum(c->num, JOB_PIXELS / pixels) : 1;
    if (group > 1)
        group = images_of_a_job(c->num, group, threads);
    int64_t jobs = (c->num + group - 1) / group * tiles, image = ((tile - 1) * c->stride_h + c->kernel_h) * row;
    double *total = calloc(threads * size, sizeof(double));
    float *recent = new_floats(threads * size, 1);
    float *copies = malloc(threads * group * image * sizeof(float));
    int failed = !total || !recent || !copies;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            int64_t thread = omp_get_thread_num();
            Sums sums = {.size = size, .recent = recent + thread * size, .total = total + thread * size};
            float *copy = copies + thread * group * image;
#pragma omp for schedule(static)
            for (int64_t job = 0; job < jobs; job++) {
                int64_t n = job / tiles * group, y = job % tiles * tile;
                Pixels p = {.images = minimum(group, c->num - n),
                            .rows = minimum(tile, c->top_height - y),
                            .width = c->top_width,
                            .x_image_step = image,
                            .x_row_step = row * c->stride_h,
                            .x_pixel_step = c->channels * c->stride_w,
                            .top_image_step = pixels * c->outputs,
                            .top_row_step = c->top_width * c->outputs,
                            .top_pixel_step = c->outputs};
                for (int64_t i = 0; i < p.images; i++)
                    padded_rows(c, bottom + (n + i) * c->height * c->width * c->channels,
                                y * c->stride_h - c->pad_h, (p.rows - 1) * c->stride_h + c->kernel_h,
                                padded_width, copy + i * image);
                for (int64_t o = 0; o < c->outputs; o += WIDE)
                    for (int64_t i = 0; i < c->kernel_h; i++)
                        for (int64_t k = 0, part; k < side; k += part) {
                            part = next_part(side - k, MAX_SIDE);
                            NAME(AddProducts) *add = NAME(add_products_table)[c->outputs - o >= WIDE][part - 1];
                            add(copy + i * row + k, top_diff + (n * pixels + y * c->top_width) * c->outputs + o,
                                &p, sums.recent + (i * side + k) * c->outputs + o, c->outputs);
                        }
                NAME(count_job)(&sums);
            }
            NAME(add_recent)(&sums);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t k = 0; k < c->kernel_h * side; k++)
                for (int64_t o = 0; o < c->outputs; o++) {
                    double sum = 0;
                    for (int t = 0; t < threads; t++)
                        sum += total[t * size + k * c->outputs + o];
                    diff[o * c->kernel_h * side + k] = (float)sum;
                }
        }
    }
    free(total);
    free(recent);
    free(copies);
    return failed;
}
