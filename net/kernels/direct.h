/* Convolutions of nets that are not trained: with weights that are packed once, and what follows in the same
   pass over the top.

       top[n][y][x][o] = act(sum over i, j, c of bottom[n][y s + i d - p][x s + j d - p][c] weight[o][i][j][c]
                             + bias[o] + other[n][y][x][o])

   Up to MAX_SIDE pixels of the top times up to 2 vectors of outputs stay in registers. Nothing of the bottom is
   copied: the places of a window that are outside of the image are read from zeros, and where a row or a column
   of the window is outside for all of the pixels, it is left out, with its weights.

   A template, like vectors.h. direct.py packs the weights for vectors of 8 numbers. */

#if !defined(VECTOR) || !defined(MAX_SIDE) || !defined(NAME) || !defined(TARGET)
#error "a template: see kernels.c"
#endif

#include "conv.h"

/* direct.py fills it in this order. */
typedef struct {
    Conv sizes;
    int64_t dilation_h, dilation_w, group, activation;
} Direct;

enum { BLOCK = 2 * VECTOR, CHUNK = 16 * MAX_SIDE };

/* Pixels of the top that follow each other: the image of each, and the place in it where its window begins.
   inside: whether all windows are wholly inside of their images. */
typedef struct {
    const float *image[MAX_SIDE];
    int64_t y[MAX_SIDE], x[MAX_SIDE];
    int inside;
} Places;

static inline void find_places(const Direct *d, const float *bottom, int64_t pixel, int side, Places *p)
{
    const Conv *c = &d->sizes;
    int64_t x = pixel % c->top_width, y = pixel / c->top_width % c->top_height;
    int64_t image = c->height * c->width * c->channels;
    const float *at = bottom + pixel / c->top_width / c->top_height * image;
    int64_t last_y = c->height - (c->kernel_h - 1) * d->dilation_h;
    int64_t last_x = c->width - (c->kernel_w - 1) * d->dilation_w;
    p->inside = 1;
    for (int t = 0; t < side; t++) {
        p->image[t] = at;
        p->y[t] = y * c->stride_h - c->pad_h;
        p->x[t] = x * c->stride_w - c->pad_w;
        p->inside &= p->y[t] >= 0 && p->y[t] < last_y && p->x[t] >= 0 && p->x[t] < last_x;
        if (++x == c->top_width) {
            x = 0;
            if (++y == c->top_height) {
                y = 0;
                at += image;
            }
        }
    }
}

/* sums[k] += the sum over c < count of x[k][c] weight[c][]. */
INLINE_TARGET void NAME(add_run)(const int side, const int vectors, const float *const x[MAX_SIDE],
                                 int64_t count, const float *weight, VEC sums[MAX_SIDE][2])
{
    for (int64_t c = 0; c < count; c++, weight += vectors * VECTOR) {
        VEC w[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            w[v] = LOAD_VEC(weight + VECTOR * v);
#pragma GCC unroll 6
        for (int k = 0; k < side; k++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[k][v] += x[k][c] * w[v];
    }
}

/* The sums of `side` pixels and of a block of outputs of a group, whose channels begin at `channel`. */
INLINE_TARGET void NAME(add_windows)(const int side, const int vectors, const Direct *d, const Places *p,
                                     int64_t channel, const float *weight, const float *zeros,
                                     VEC sums[MAX_SIDE][2])
{
    const Conv *c = &d->sizes;
    int64_t count = c->channels / d->group, row = c->width * c->channels;
    const float *x[MAX_SIDE];
    if (p->inside && ((d->group == 1 && d->dilation_w == 1) || c->kernel_w == 1)) {
        for (int64_t i = 0; i < c->kernel_h; i++, weight += c->kernel_w * count * vectors * VECTOR) {
#pragma GCC unroll 6
            for (int k = 0; k < side; k++)
                x[k] = p->image[k] + (p->y[k] + i * d->dilation_h) * row + p->x[k] * c->channels + channel;
            NAME(add_run)(side, vectors, x, c->kernel_w * count, weight, sums);
        }
        return;
    }
    for (int64_t i = 0; i < c->kernel_h; i++)
        for (int64_t j = 0; j < c->kernel_w; j++, weight += count * vectors * VECTOR) {
            int any = 0;
#pragma GCC unroll 6
            for (int k = 0; k < side; k++) {
                int64_t py = p->y[k] + i * d->dilation_h, px = p->x[k] + j * d->dilation_w;
                int in = py >= 0 && py < c->height && px >= 0 && px < c->width;
                x[k] = in ? p->image[k] + py * row + px * c->channels + channel : zeros;
                any |= in;
            }
            if (any)
                NAME(add_run)(side, vectors, x, count, weight, sums);
        }
}

/* Where the values of a block of outputs are, besides the bottom and the weights. `count` of them are there;
   `other` and `top` are those of the first pixel. */
typedef struct {
    const float *bias, *slopes, *other;
    float *top;
    int64_t count;
} Outputs;

INLINE_TARGET void NAME(direct_tile)(const int side, const int vectors, const Direct *d, const Places *p,
                                     int64_t channel, const float *weight, const float *zeros, const Outputs *o)
{
    VEC sums[MAX_SIDE][2] = {0};
    int64_t step = d->sizes.outputs;
    NAME(add_windows)(side, vectors, d, p, channel, weight, zeros, sums);
#pragma GCC unroll 6
    for (int k = 0; k < side; k++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            int64_t at = VECTOR * v, left = o->count - at;
            float part[VECTOR] = {0};
            VEC y = sums[k][v] + LOAD_VEC(o->bias + at);
            if (o->other && left >= VECTOR)
                y += LOAD_VEC(o->other + k * step + at);
            else if (o->other) {
                memcpy(part, o->other + k * step + at, left * sizeof(float));
                y += LOAD_VEC(part);
            }
            y = NAME(activated)(y, d->activation, o->slopes + at);
            if (left >= VECTOR)
                STORE_VEC(o->top + k * step + at, y);
            else {
                STORE_VEC(part, y);
                memcpy(o->top + k * step + at, part, left * sizeof(float));
            }
        }
}

typedef void NAME(DirectTile)(const Direct *, const Places *, int64_t, const float *, const float *, const Outputs *);

#define DIRECT_TILE(side, vectors)                                                                             \
    TARGET static void NAME(direct_tile_##side##_##vectors)(const Direct *d, const Places *p, int64_t channel,         \
                                                    const float *weight, const float *zeros,                   \
                                                    const Outputs *o)                                          \
    {                                                                                                          \
        NAME(direct_tile)(side, vectors, d, p, channel, weight, zeros, o);                                           \
    }

FOR_EACH_SIZE(DIRECT_TILE)

static NAME(DirectTile) *const NAME(direct_table)[2][MAX_SIDE] = SIZE_TABLE(direct_tile);

/* packed: for each group, then for each block of up to 16 of its outputs, weight[i][j][c][o], where o < 8 if no
   more outputs are left, else o < 16; what is beyond the outputs is 0. bias, slopes: for each group as many
   numbers, with as many zeros. other may be NULL, or the top.
   Returns 0, or 1 if memory cannot be allocated. */
int NAME(direct)(const float *bottom, const float *packed, const float *bias, const float *slopes,
                 const float *other, const Direct *d, int threads, float *top)
{
    const Conv *c = &d->sizes;
    int64_t outputs = c->outputs / d->group, channels = c->channels / d->group;
    int64_t blocks = (outputs + BLOCK - 1) / BLOCK, padded = (outputs + VECTOR - 1) / VECTOR * VECTOR;
    int64_t pixels = c->num * c->top_height * c->top_width, window = c->kernel_h * c->kernel_w * channels;
    int64_t chunks = (pixels + CHUNK - 1) / CHUNK, parts = d->group * blocks;
    float *zeros = calloc(channels, sizeof(float));
    if (!zeros)
        return 1;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t job = 0; job < chunks * parts; job++) {
        int64_t first = job / parts * CHUNK, group = job % parts / blocks, block = job % blocks * BLOCK;
        int64_t end = minimum(pixels, first + CHUNK), output = group * outputs + block;
        int vectors = outputs - block > VECTOR ? 2 : 1;
        const float *weight = packed + (group * padded + block) * window;
        Outputs o = {.bias = bias + group * padded + block,
                     .slopes = slopes + group * padded + block,
                     .count = minimum(BLOCK, outputs - block)};
        for (int64_t pixel = first; pixel < end; pixel += MAX_SIDE) {
            int side = (int)minimum(MAX_SIDE, end - pixel);
            Places p;
            find_places(d, bottom, pixel, side, &p);
            o.top = top + pixel * c->outputs + output;
            o.other = other ? other + pixel * c->outputs + output : NULL;
            NAME(DirectTile) *run = NAME(direct_table)[vectors - 1][side - 1];
            run(d, &p, group * channels, weight, zeros, &o);
        }
    }
    free(zeros);
    return 0;
}

enum { COLUMNS = 4 };

/* VECTOR channels of `columns` adjacent pixels of the top; of the window, the rows and columns that are given.
   x: the first of them in the bottom. */
INLINE_TARGET void NAME(depthwise_pixels)(const int columns, const Direct *d, const float *x,
                                          const float *weight, int64_t rows, int64_t width, const float *bias,
                                          const float *slopes, float *top)
{
    const Conv *c = &d->sizes;
    VEC sums[COLUMNS];
    int64_t pixel = c->stride_w * c->channels;
#pragma GCC unroll 4
    for (int k = 0; k < columns; k++)
        sums[k] = LOAD_VEC(bias);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++) {
            const float *from = x + (i * d->dilation_h * c->width + j * d->dilation_w) * c->channels;
            VEC w = LOAD_VEC(weight + (i * c->kernel_w + j) * c->channels);
#pragma GCC unroll 4
            for (int k = 0; k < columns; k++)
                sums[k] += LOAD_VEC(from + k * pixel) * w;
        }
#pragma GCC unroll 4
    for (int k = 0; k < columns; k++)
        STORE_VEC(top + k * c->channels, NAME(activated)(sums[k], d->activation, slopes));
}

/* The part of a window that is inside of the image, on one axis: from `first` on, `count`. */
static inline void clip(int64_t begin, int64_t size, int64_t kernel, int64_t dilation, int64_t *first,
                        int64_t *count)
{
    int64_t end = size - begin > 0 ? minimum(kernel, (size - begin + dilation - 1) / dilation) : 0;
    *first = begin < 0 ? (-begin + dilation - 1) / dilation : 0;
    *count = end > *first ? end - *first : 0;
}

/* A row of the top. */
TARGET static void NAME(depthwise_row)(const Direct *d, const float *image, const float *weight,
                                       const float *bias, const float *slopes, int64_t y, float *top)
{
    const Conv *c = &d->sizes;
    int64_t first_row, rows, span = (c->kernel_w - 1) * d->dilation_w;
    clip(y, c->height, c->kernel_h, d->dilation_h, &first_row, &rows);
    image += (y + first_row * d->dilation_h) * c->width * c->channels;
    weight += first_row * c->kernel_w * c->channels;
    for (int64_t x = 0, columns; x < c->top_width; x += columns) {
        int64_t begin = x * c->stride_w - c->pad_w, first, width;
        clip(begin, c->width, c->kernel_w, d->dilation_w, &first, &width);
        int whole = begin >= 0 && x + COLUMNS <= c->top_width &&
                    begin + (COLUMNS - 1) * c->stride_w + span < c->width;
        columns = whole ? COLUMNS : 1;
        const float *from = image + (begin + first * d->dilation_w) * c->channels;
        const float *w = weight + first * c->channels;
        float *to = top + x * c->channels;
        /* The last vector begins earlier, where the channels do not fill it. */
        for (int64_t next = 0; next < c->channels; next += VECTOR) {
            int64_t at = minimum(next, c->channels - VECTOR);
            if (whole)
                NAME(depthwise_pixels)(COLUMNS, d, from + at, w + at, rows, width, bias + at, slopes + at, to + at);
            else
                NAME(depthwise_pixels)(1, d, from + at, w + at, rows, width, bias + at, slopes + at, to + at);
        }
    }
}

/* The same where each channel is a group, with one output: weight[i][j][c], at least VECTOR channels. */
int NAME(depthwise)(const float *bottom, const float *weight, const float *bias, const float *slopes,
                    const Direct *d, int threads, float *top)
{
    const Conv *c = &d->sizes;
    int64_t rows = c->num * c->top_height;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t n = row / c->top_height, y = row % c->top_height * c->stride_h - c->pad_h;
        NAME(depthwise_row)(d, bottom + n * c->height * c->width * c->channels, weight, bias, slopes, y,
                      top + row * c->top_width * c->channels);
    }
    return 0;
}
