/* The gradient of a convolution's weights in bfloat16, by products of AMX's tiles, added up in single precision. The
   stride is 1, and bottom and top are of one size.

       diff[o][i][j][c] = sum over n, y, x of bottom[n][y + i - p][x + j - p][c] top_diff[n][y][x][o]

   A job is some rows of an image, or some whole images: a strip, one long row of pixels, in which rows of zeros
   divide the images. A product adds up over 32 adjacent pixels of the top, which are transposed, and over 16 pairs
   of adjacent pixels of the bottom, which are laid out in pairs once for each column j of a window: row i of a
   window is then a step of i rows. What lies between the images is multiplied by 0, so that infinities and NaN
   reach a few weights more than in a plain convolution.

   Included once, after conv_weight.h for AVX-512. */

#include "tiles.h"

enum { STRIP_PIXELS = 1024 }; /* about */

/* Of each image `rows` rows of the top, from `first` on. A row has `width` pixels, an even number; from one image
   to the next there are `image_rows`. */
typedef struct {
    int64_t images, first, rows, image_rows, width;
} Strip;

static Strip strip_of(const Conv *c, int64_t images, int64_t first, int64_t rows)
{
    return (Strip){.images = images,
                   .first = first,
                   .rows = rows,
                   .image_rows = images > 1 ? c->height + c->pad_h : rows,
                   .width = c->width + c->width % 2};
}

/* The pixels of the top, in whole tiles. */
static int64_t strip_pixels(const Strip *s)
{
    int64_t pixels = ((s->images - 1) * s->image_rows + s->rows) * s->width;
    return (pixels + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH;
}

/* out[output][pixel]; `top_diff` is the first image's, `zeros` a pixel of zeros. */
TILES_TARGET static void transpose_top(const Conv *c, const Strip *s, const bfloat16 *top_diff,
                                       const bfloat16 *zeros, bfloat16 *out, int64_t out_row)
{
    int64_t pixels = strip_pixels(s), outputs = c->outputs, x = 0, row = 0, image = 0;
    const bfloat16 *from = top_diff + s->first * c->width * outputs;
    for (int64_t p = 0; p < pixels; p += TILE_DEPTH) {
        const bfloat16 *of_pixels[TILE_DEPTH];
        for (int64_t k = 0, run; k < TILE_DEPTH; k += run) {
            int is_inside = x < c->width && row < s->rows && image < s->images;
            run = minimum((x < c->width ? c->width : s->width) - x, TILE_DEPTH - k);
            for (int64_t i = 0; i < run; i++)
                of_pixels[k + i] = is_inside ? from + i * outputs : zeros;
            from += run * outputs;
            if ((x += run) < s->width)
                continue;
            x = 0;
            if (++row == s->image_rows) {
                row = 0;
                image++;
            }
            from = top_diff + (image * c->height + s->first + row) * c->width * outputs;
        }
        for (int64_t o = 0; o < outputs; o += TILE_SIDE)
            transpose_tile(of_pixels, o, out + o * out_row + p, out_row);
    }
}

/* out[pair][channel][2] of a row whose pixels are shifted by `shift`, with zeros beyond its ends. */
TILES_TARGET static void pair_row(const bfloat16 *row, int64_t width, int64_t pairs, int64_t channels, int64_t shift,
                                  bfloat16 *out)
{
    for (int64_t q = 0, x = shift; q < pairs; q++, x += 2) {
        int is_even_inside = x >= 0 && x < width, is_odd_inside = x >= -1 && x < width - 1;
        const bfloat16 *even = row + x * channels, *odd = even + channels;
        for (int64_t i = 0; i < channels; i += TILE_SIDE, out += 2 * TILE_SIDE)
            if (is_even_inside && is_odd_inside)
                write_pair(even + i, odd + i, out);
            else
                write_pair(is_even_inside ? even + i : NULL, is_odd_inside ? odd + i : NULL, out);
    }
}

/* out[j][pair][channel][2] of a strip, with the rows above and below it; from one j to the next are `step`. */
static void pair_bottom(const Conv *c, const Strip *s, const bfloat16 *bottom, bfloat16 *out, int64_t step)
{
    int64_t rows = (s->images - 1) * s->image_rows + s->rows + c->kernel_h - 1, size = s->width * c->channels;
    for (int64_t k = 0; k < rows; k++, out += size) {
        int64_t image = s->images > 1 ? minimum(k / s->image_rows, s->images - 1) : 0;
        int64_t y = s->first + k - image * s->image_rows - c->pad_h;
        int is_inside = y >= 0 && y < c->height;
        for (int64_t j = 0; j < c->kernel_w; j++)
            if (is_inside)
                pair_row(bottom + (image * c->height + y) * c->width * c->channels, c->width, s->width / 2,
                         c->channels, j - c->pad_w, out + j * step);
            else
                memset(out + j * step, 0, size * sizeof(bfloat16));
    }
}

/* sums[k][o][c] += the products of a strip, for `columns` adjacent columns k of a window, 16 outputs and 16
   channels. From one column to the next there are `pairs_step` and `sums_step` numbers. */
TILES_TARGET static inline __attribute__((always_inline)) void
add_columns(const int columns, const bfloat16 *top, int64_t top_row, const bfloat16 *pairs, int64_t pairs_step,
            int64_t channels, int64_t pixels, float *sums, int64_t sums_step)
{
    int64_t row = channels * sizeof(float); /* of sums, and of pairs of channels */
    TILE_LOAD(0, sums, row);
    if (columns > 1)
        TILE_LOAD(1, sums + sums_step, row);
    if (columns > 2)
        TILE_LOAD(2, sums + 2 * sums_step, row);
    for (int64_t p = 0; p < pixels; p += TILE_DEPTH, pairs += TILE_DEPTH * channels) {
        TILE_LOAD(4, top + p, top_row * sizeof(bfloat16));
        TILE_LOAD(5, pairs, row);
        TILE_PRODUCT(0, 4, 5);
        if (columns > 1) {
            TILE_LOAD(6, pairs + pairs_step, row);
            TILE_PRODUCT(1, 4, 6);
        }
        if (columns > 2) {
            TILE_LOAD(7, pairs + 2 * pairs_step, row);
            TILE_PRODUCT(2, 4, 7);
        }
    }
    TILE_STORE(0, sums, row);
    if (columns > 1)
        TILE_STORE(1, sums + sums_step, row);
    if (columns > 2)
        TILE_STORE(2, sums + 2 * sums_step, row);
}

/* Channels and outputs are multiples of 16. Returns 0, or 1 if memory cannot be allocated. */
TILES_TARGET int imae_conv_weight_bfloat16(const bfloat16 *bottom, const bfloat16 *top_diff, const Conv *c,
                                           int threads, float *diff)
{
    int64_t width = c->width + c->width % 2, image = (c->height + c->pad_h) * width;
    int64_t images = minimum(c->num, image < STRIP_PIXELS ? STRIP_PIXELS / image : 1), rows = c->height;
    if (images > 1)
        images = images_of_a_job(c->num, images, threads);
    else if (image > 2 * STRIP_PIXELS)
        rows = minimum(rows, STRIP_PIXELS / width + 1);
    int64_t strips = (c->height + rows - 1) / rows, jobs = (c->num + images - 1) / images * strips;
    Strip longest = strip_of(c, images, 0, rows);
    int64_t pixels = strip_pixels(&longest), tile = c->channels * c->outputs;
    int64_t size = c->kernel_h * c->kernel_w * tile, step = (pixels + c->kernel_h * width) * c->channels;
    int64_t top_row = pixels % 64 ? pixels : pixels + TILE_DEPTH; /* an odd number of the cache's lines */
    int64_t scratch = (top_row * c->outputs + c->kernel_w * step + 31) / 32 * 32;
    bfloat16 *memory = aligned_alloc(64, (threads * scratch + (c->outputs + 31) / 32 * 32) * sizeof(bfloat16));
    double *total = calloc(threads * size, sizeof(double)); /* [thread][i][j][output][channel] */
    float *recent = new_floats(threads * size, 1);
    int failed = !memory || !total || !recent;
    if (!failed) {
        bfloat16 *zeros = memory + threads * scratch;
        memset(zeros, 0, c->outputs * sizeof(bfloat16));
#pragma omp parallel num_threads(threads)
        {
            int64_t thread = omp_get_thread_num();
            Sums sums = {.size = size, .recent = recent + thread * size, .total = total + thread * size};
            bfloat16 *top = memory + thread * scratch, *pairs = top + top_row * c->outputs;
            memset(top, 0, scratch * sizeof(bfloat16));
            configure_tiles();
#pragma omp for schedule(static)
            for (int64_t job = 0; job < jobs; job++) {
                int64_t n = job / strips * images, y = job % strips * rows;
                Strip s = strip_of(c, minimum(images, c->num - n), y, minimum(rows, c->height - y));
                int64_t count = strip_pixels(&s);
                transpose_top(c, &s, top_diff + n * c->height * c->width * c->outputs, zeros, top, top_row);
                pair_bottom(c, &s, bottom + n * c->height * c->width * c->channels, pairs, step);
                for (int64_t i = 0; i < c->kernel_h; i++)
                    for (int64_t j = 0, columns; j < c->kernel_w; j += columns) {
                        columns = c->kernel_w - j >= 3 ? 3 : 1;
                        for (int64_t ch = 0; ch < c->channels; ch += TILE_SIDE)
                            for (int64_t o = 0; o < c->outputs; o += TILE_SIDE) {
                                const bfloat16 *from = pairs + j * step + i * s.width * c->channels + 2 * ch;
                                float *to = sums.recent + (i * c->kernel_w + j) * tile + o * c->channels + ch;
                                if (columns == 3)
                                    add_columns(3, top + o * top_row, top_row, from, step, c->channels, count, to,
                                                tile);
                                else
                                    add_columns(1, top + o * top_row, top_row, from, step, c->channels, count, to,
                                                tile);
                            }
                    }
                NAME(count_job)(&sums);
            }
            RELEASE_TILES();
            NAME(add_recent)(&sums);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t o = 0; o < c->outputs; o++)
                for (int64_t k = 0; k < c->kernel_h * c->kernel_w; k++)
                    for (int64_t i = 0; i < c->channels; i++) {
                        double sum = 0;
                        for (int t = 0; t < threads; t++)
                            sum += total[t * size + k * tile + o * c->channels + i];
                        diff[(o * c->kernel_h * c->kernel_w + k) * c->channels + i] = (float)sum;
                    }
        }
    }
    free(memory);
    free(total);
    free(recent);
    return failed;
}
