/* Convolutions with a window of 3x3 pixels and a stride of 1, by Winograd's F(2x2, 3x3): 16 products for four
   pixels of the top instead of 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
   2016, equations 8 to 12).

   A tile is 2x2 pixels of the top; it sees 4x4 pixels of the bottom.

       top          = A^T [sum over channels of (G weight G^T) . (B^T bottom B)] A
       bottom diff  = the same of top_diff, with the weights rotated by 180 degrees
       weights diff = G^T [sum over tiles of (B^T bottom B) . (A top_diff A^T)] G

             1  0 -1  0         1    0    0            1  0
       B^T = 0  1  1  0     G = 1/2  1/2  1/2      A = 1  1
             0 -1  1  0         1/2 -1/2  1/2          1 -1
             0  1  0 -1         0    0    1            0 -1

   The sums are shorter than a plain convolution's, and B and A only add: the values are not less exact. For
   each of the 16 places of a transformed tile, the sum is a product of two matrices.
   A template, like vectors.h, after conv_weight.h. */

#if !defined(VECTOR) || !defined(MAX_SIDE) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#ifndef WINOGRAD_H
#define WINOGRAD_H

#include "conv.h"

enum { PLACES = 16, TILES = 24 };

/* The step in memory from the numbers of one place to the numbers of the next. The 16 extra numbers keep the
   places from competing for the same lines of the cache. */
static int64_t place_step(int64_t tiles, int64_t channels)
{
    return tiles * channels + 16;
}

/* Image, row and column of the top at which a tile begins. */
typedef struct {
    int64_t n, y, x;
} Tile;

static inline int64_t tile_count(const Conv *c)
{
    return c->num * ((c->top_height + 1) / 2) * ((c->top_width + 1) / 2);
}

static inline Tile tile_at(const Conv *c, int64_t number)
{
    int64_t rows = (c->top_height + 1) / 2, columns = (c->top_width + 1) / 2;
    return (Tile){number / columns / rows, number / columns % rows * 2, number % columns * 2};
}

static inline void advance(const Conv *c, Tile *t)
{
    if ((t->x += 2) < c->top_width)
        return;
    t->x = 0;
    if ((t->y += 2) < c->top_height)
        return;
    t->y = 0;
    t->n++;
}

/* G^T times four. */
static inline void apply_g_transposed(double a, double b, double c, double d, double out[3])
{
    out[0] = a + 0.5 * (b + c);
    out[1] = 0.5 * (b - c);
    out[2] = 0.5 * (b + c) + d;
}

#endif

/* B^T times a column of four pixels; zeros for a column outside of the image. */
INLINE_TARGET void NAME(apply_b_transposed)(const float *const rows[4], int64_t at, int inside, VEC out[4])
{
    if (!inside) {
        out[0] = out[1] = out[2] = out[3] = (VEC){0};
        return;
    }
    VEC a = LOAD_VEC(rows[0] + at), b = LOAD_VEC(rows[1] + at), c = LOAD_VEC(rows[2] + at), d = LOAD_VEC(rows[3] + at);
    out[0] = a - c;
    out[1] = b + c;
    out[2] = c - b;
    out[3] = b - d;
}

/* B^T bottom B of adjacent tiles, the first of which begins at column x: out[place][tile][channel]. */
INLINE_TARGET void NAME(transform_run)(const float *const rows[4], int64_t width, int64_t channels, int64_t x,
                                       int64_t tiles, float *out, int64_t step)
{
    for (int64_t c = 0; c < channels; c += VECTOR) {
        VEC t[4], u[4], v[4], w[4];
        const float *next = rows[3] + width * channels + c; /* of the tiles below */
        float *dest = out + c;
        NAME(apply_b_transposed)(rows, x * channels + c, x >= 0 && x < width, t);
        NAME(apply_b_transposed)(rows, (x + 1) * channels + c, x + 1 >= 0 && x + 1 < width, u);
        for (int64_t i = 0, at = x + 2; i < tiles; i++, at += 2, dest += channels) {
            NAME(apply_b_transposed)(rows, at * channels + c, at >= 0 && at < width, v);
            NAME(apply_b_transposed)(rows, (at + 1) * channels + c, at + 1 >= 0 && at + 1 < width, w);
            if (c % CACHE_LINE == 0)
                for (int p = 0; p < 4; p++)
                    __builtin_prefetch(next + (at + p % 2 + p / 2 * width) * channels);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                STORE_VEC(dest + (4 * k + 0) * step, t[k] - v[k]);
                STORE_VEC(dest + (4 * k + 1) * step, u[k] + v[k]);
                STORE_VEC(dest + (4 * k + 2) * step, v[k] - u[k]);
                STORE_VEC(dest + (4 * k + 3) * step, u[k] - w[k]);
                t[k] = v[k];
                u[k] = w[k];
            }
        }
    }
}

/* The same for tiles of all images, from number `first` on; `zeros` replaces rows outside of an image. */
TARGET static void NAME(transform_bottom)(const Conv *c, const float *bottom, const float *zeros, int64_t first,
                                          int64_t tiles, float *out, int64_t step)
{
    int64_t row = c->width * c->channels;
    for (int64_t run; tiles > 0; first += run, tiles -= run, out += run * c->channels) {
        Tile t = tile_at(c, first);
        const float *rows[4];
        for (int64_t i = 0, y = t.y - c->pad_h; i < 4; i++, y++)
            rows[i] = y < 0 || y >= c->height ? zeros : bottom + (t.n * c->height + y) * row;
        run = minimum(tiles, (c->top_width + 1 - t.x) / 2);
        NAME(transform_run)(rows, c->width, c->channels, t.x - c->pad_w, run, out, step);
    }
}

/* out[t][o] = sum over the channels of x[t] weight[][o], for t < side and o < vectors * VECTOR. */
INLINE_TARGET void NAME(multiply)(const int side, const int vectors, const float *x, int64_t channels,
                                  const float *weight, float *out)
{
    VEC sums[MAX_SIDE][2] = {0};
    for (int64_t c = 0; c < channels; c++, weight += vectors * VECTOR)
        NAME(add_outer)(side, vectors, x + c, channels, weight, sums);
#pragma GCC unroll 12
    for (int t = 0; t < side; t++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            STORE_VEC(out + t * WIDE + VECTOR * v, sums[t][v]);
}

typedef void NAME(Multiply)(const float *, int64_t, const float *, float *);

#undef MULTIPLY
#define MULTIPLY(side, vectors)                                                                                \
    TARGET static void NAME(multiply_##side##_##vectors)(const float *x, int64_t channels,                     \
                                                         const float *weight, float *out)                      \
    {                                                                                                          \
        NAME(multiply)(side, vectors, x, channels, weight, out);                                               \
    }

FOR_EACH_SIZE(MULTIPLY)

static NAME(Multiply) *const NAME(multiply_table)[2][MAX_SIDE] = SIZE_TABLE(multiply);

/* A^T times a column of four. */
INLINE_TARGET void NAME(apply_a_transposed)(VEC a, VEC b, VEC c, VEC d, VEC out[2])
{
    out[0] = a + b + c;
    out[1] = b - c - d;
}

/* Writes the pixels of tiles, for `vectors` * VECTOR outputs, from products[place][tile][output]. */
TARGET static void NAME(write_top)(const Conv *c, const float *products, int64_t step, int64_t first,
                                   int64_t tiles, int vectors, const float *bias, const float *slopes,
                                   int activation, float *top)
{
    int64_t row = c->top_width * c->outputs;
    Tile t = tile_at(c, first);
    for (; tiles > 0; tiles--, advance(c, &t), products += WIDE) {
        float *dest = top + (t.n * c->top_height + t.y) * row + t.x * c->outputs;
        int right = t.x + 1 < c->top_width, below = t.y + 1 < c->top_height;
        for (int v = 0; v < vectors; v++, dest += VECTOR) {
            if (VECTOR * v % CACHE_LINE == 0)
                for (int p = 0; p < 4; p++)
                    __builtin_prefetch(dest + (12 + p % 2) * c->outputs + p / 2 * row, 1);
            VEC half[4][2], whole[2][2], b = bias ? LOAD_VEC(bias + VECTOR * v) : (VEC){0};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const float *place = products + 4 * i * step + VECTOR * v;
                NAME(apply_a_transposed)(LOAD_VEC(place), LOAD_VEC(place + step), LOAD_VEC(place + 2 * step),
                                         LOAD_VEC(place + 3 * step), half[i]);
            }
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                VEC column[2];
                NAME(apply_a_transposed)(half[0][j], half[1][j], half[2][j], half[3][j], column);
                whole[0][j] = column[0] + b;
                whole[1][j] = column[1] + b;
            }
            if (activation != NO_ACTIVATION)
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    whole[i / 2][i % 2] = NAME(activated)(whole[i / 2][i % 2], activation,
                                                          slopes ? slopes + VECTOR * v : NULL);
            STORE_VEC(dest, whole[0][0]);
            if (right)
                STORE_VEC(dest + c->outputs, whole[0][1]);
            if (below)
                STORE_VEC(dest + row, whole[1][0]);
            if (right && below)
                STORE_VEC(dest + row + c->outputs, whole[1][1]);
        }
    }
}

/* G times three. */
INLINE_TARGET void NAME(apply_g)(VEC a, VEC b, VEC c, VEC out[4])
{
    out[0] = a;
    out[1] = (a + b + c) * 0.5f;
    out[2] = (a - b + c) * 0.5f;
    out[3] = c;
}

/* G weight G^T of VECTOR outputs: out[place][channel][wide]. */
TARGET static void NAME(transform_weights)(const float *weight, const int64_t *strides, int rotated,
                                           int64_t channels, int64_t wide, float *out)
{
    for (int64_t c = 0; c < channels; c++, weight += strides[1], out += wide) {
        VEC g[3][3], half[3][4];
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) {
                int64_t at = (rotated ? 2 - i : i) * strides[2] + (rotated ? 2 - j : j) * strides[3];
                for (int o = 0; o < VECTOR; o++)
                    g[i][j][o] = weight[at + o * strides[0]];
            }
        for (int i = 0; i < 3; i++)
            NAME(apply_g)(g[i][0], g[i][1], g[i][2], half[i]);
        for (int j = 0; j < 4; j++) {
            VEC column[4];
            NAME(apply_g)(half[0][j], half[1][j], half[2][j], column);
            for (int i = 0; i < 4; i++)
                STORE_VEC(out + (4 * i + j) * channels * wide, column[i]);
        }
    }
}

/* What `winograd` makes of the weights: transformed[output / WIDE][place][channel][output % WIDE]. `strides` are
   the four steps in the memory of the weights; `rotated`: each window rotated by 180 degrees. Channels and
   outputs are multiples of VECTOR. */
void NAME(winograd_transform)(const float *weight, const int64_t *strides, int rotated, const Conv *c,
                              int threads, float *transformed)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < c->outputs; o += VECTOR) {
        int64_t block = o / WIDE * WIDE, wide = minimum(WIDE, c->outputs - block);
        NAME(transform_weights)(weight + o * strides[0], strides, rotated, c->channels, wide,
                                transformed + block * PLACES * c->channels + o - block);
    }
}

/* A convolution by transformed weights, plus bias, which may be NULL, and with what follows (see activation.h).
   Returns 0, or 1 if memory cannot be allocated. */
int NAME(winograd_by_transformed)(const float *bottom, const float *transformed, const float *bias,
                                  const float *slopes, int activation, const Conv *c, int threads, float *top)
{
    int64_t tiles = tile_count(c);
    int64_t step = place_step(TILES, c->channels), product_step = place_step(TILES, WIDE);
    int64_t scratch_size = PLACES * (step + product_step), row = c->width * c->channels;
    /* As many jobs for each thread, of about as many tiles. */
    int64_t jobs = ((tiles + TILES - 1) / TILES + threads - 1) / threads * threads;
    int64_t share = (tiles + jobs - 1) / jobs;
    float *zeros = new_floats(row, 1), *scratch = new_floats(threads * scratch_size, 0);
    int failed = !zeros || !scratch;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            float *bottom_tiles = scratch + omp_get_thread_num() * scratch_size;
            float *products = bottom_tiles + PLACES * step;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += share) {
                int64_t count = minimum(share, tiles - first), parts = (count + MAX_SIDE - 1) / MAX_SIDE;
                int64_t side = (count + parts - 1) / parts;
                NAME(transform_bottom)(c, bottom, zeros, first, count, bottom_tiles, step);
                for (int64_t o = 0; o < c->outputs; o += WIDE) {
                    int vectors = c->outputs - o >= WIDE ? 2 : 1;
                    const float *factor = transformed + o * PLACES * c->channels;
                    for (int p = 0; p < PLACES; p++, factor += c->channels * vectors * VECTOR)
                        for (int64_t t = 0; t < count; t += side) {
                            NAME(Multiply) *run =
                                NAME(multiply_table)[vectors - 1][minimum(side, count - t) - 1];
                            run(bottom_tiles + p * step + t * c->channels, c->channels, factor,
                                products + p * product_step + t * WIDE);
                        }
                    NAME(write_top)(c, products, product_step, first, count, vectors, bias ? bias + o : NULL,
                                    slopes ? slopes + o : NULL, activation, top + o);
                }
            }
        }
    }
    free(zeros);
    free(scratch);
    return failed;
}

/* top = bottom convolved with weight[o][c][i][j], plus bias, which may be NULL; see winograd_transform.
   Returns 0, or 1 if memory cannot be allocated. */
int NAME(winograd)(const float *bottom, const float *weight, const int64_t *strides, int rotated,
                   const float *bias, const Conv *c, int threads, float *top)
{
    float *transformed = new_floats(PLACES * c->channels * c->outputs, 0);
    int failed = !transformed;
    if (!failed) {
        NAME(winograd_transform)(weight, strides, rotated, c, threads, transformed);
        failed = NAME(winograd_by_transformed)(bottom, transformed, bias, NULL, NO_ACTIVATION, c, threads, top);
    }
    free(transformed);
    return failed;
}

/* A times two. */
INLINE_TARGET void NAME(apply_a)(VEC a, VEC b, VEC out[4])
{
    out[0] = a;
    out[1] = a + b;
    out[2] = a - b;
    out[3] = -b;
}

/* A top_diff A^T for tiles of all images, from number `first` on: out[place][tile][output]. */
TARGET static void NAME(transform_top_diff)(const Conv *c, const float *top_diff, int64_t first, int64_t tiles,
                                            float *out, int64_t step)
{
    int64_t row = c->top_width * c->outputs;
    Tile t = tile_at(c, first);
    for (; tiles > 0; tiles--, advance(c, &t), out += c->outputs) {
        const float *diff = top_diff + (t.n * c->top_height + t.y) * row + t.x * c->outputs;
        int right = t.x + 1 < c->top_width, below = t.y + 1 < c->top_height;
        for (int64_t o = 0; o < c->outputs; o += VECTOR, diff += VECTOR) {
            if (o % CACHE_LINE == 0)
                for (int p = 0; p < 4; p++)
                    __builtin_prefetch(diff + (2 + p / 2) * row + p % 2 * c->outputs);
            VEC none = {0}, half[2][4];
            NAME(apply_a)(LOAD_VEC(diff), right ? LOAD_VEC(diff + c->outputs) : none, half[0]);
            NAME(apply_a)(below ? LOAD_VEC(diff + row) : none,
                          right && below ? LOAD_VEC(diff + row + c->outputs) : none, half[1]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                VEC column[4];
                NAME(apply_a)(half[0][j], half[1][j], column);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    STORE_VEC(out + o + (4 * i + j) * step, column[i]);
            }
        }
    }
}

/* diff[o][i][j][c]. Channels and outputs are multiples of VECTOR.
   Returns 0, or 1 if memory cannot be allocated. */
int NAME(winograd_weight)(const float *bottom, const float *top_diff, const Conv *c, int threads, float *diff)
{
    int64_t tiles = tile_count(c);
    int64_t group = c->channels + c->outputs > 128 ? 64 : 96; /* tiles that fit into the cache */
    int64_t step = place_step(group, c->channels), top_step = place_step(group, c->outputs);
    int64_t scratch_size = PLACES * (step + top_step), size = PLACES * c->channels * c->outputs;
    int64_t row = c->width * c->channels;
    double *total = calloc(threads * size, sizeof(double)); /* [thread][place][channel][output] */
    float *recent = new_floats(threads * size, 1);
    float *zeros = new_floats(row, 1), *scratch = new_floats(threads * scratch_size, 0);
    int failed = !total || !recent || !zeros || !scratch;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            int64_t thread = omp_get_thread_num();
            Sums sums = {.size = size, .recent = recent + thread * size, .total = total + thread * size};
            float *bottom_tiles = scratch + thread * scratch_size, *top_tiles = bottom_tiles + PLACES * step;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += group) {
                Pixels p = {.images = 1,
                            .rows = 1,
                            .width = minimum(group, tiles - first),
                            .x_pixel_step = c->channels,
                            .top_pixel_step = c->outputs};
                NAME(transform_bottom)(c, bottom, zeros, first, p.width, bottom_tiles, step);
                NAME(transform_top_diff)(c, top_diff, first, p.width, top_tiles, top_step);
                for (int64_t place = 0; place < PLACES; place++)
                    for (int64_t o = 0; o < c->outputs; o += WIDE)
                        for (int64_t i = 0, side; i < c->channels; i += side) {
                            side = next_part(c->channels - i, MAX_SIDE);
                            NAME(AddProducts) *add = NAME(add_products_table)[c->outputs - o >= WIDE][side - 1];
                            add(bottom_tiles + place * step + i, top_tiles + place * top_step + o, &p,
                                sums.recent + (place * c->channels + i) * c->outputs + o, c->outputs);
                        }
                NAME(count_job)(&sums);
            }
            NAME(add_recent)(&sums);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < c->channels; i++)
                for (int64_t o = 0; o < c->outputs; o++) {
                    double sum[PLACES] = {0}, half[4][3], column[3];
                    for (int t = 0; t < threads; t++)
                        for (int p = 0; p < PLACES; p++)
                            sum[p] += total[t * size + (p * c->channels + i) * c->outputs + o];
                    for (int k = 0; k < 4; k++)
                        apply_g_transposed(sum[4 * k], sum[4 * k + 1], sum[4 * k + 2], sum[4 * k + 3], half[k]);
                    for (int j = 0; j < 3; j++) {
                        apply_g_transposed(half[0][j], half[1][j], half[2][j], half[3][j], column);
                        for (int k = 0; k < 3; k++)
                            diff[((o * 3 + k) * 3 + j) * c->channels + i] = (float)column[k];
                    }
                }
        }
    }
    free(total);
    free(recent);
    free(zeros);
    free(scratch);
    return failed;
}
