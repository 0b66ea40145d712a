/* A window of an image becomes numbers of a batch, in one pass over the memory:

       value = (byte - mean) scale

   in single precision, each operation rounded, as numpy and OpenCV compute it. The image is `height` rows of
   `width` pixels of `channels` bytes; if it is mirrored, the pixels of each row are reversed. The values are
   contiguous and are not read again soon: with AVX2 they are written past the caches, which otherwise read the
   memory first. That is done by whole lines of the cache, as one that is written in part takes many times as long.
   So the end of a row that does not fill a line waits for the next row. */

#ifndef PIXELS_H
#define PIXELS_H

#include "common.h"

/* A window, and what is done with it; pixels.py fills it in this order. */
typedef struct {
    int64_t height, width, channels;
    int64_t row_stride;  /* bytes from row to row of the image */
    int64_t mean_stride; /* numbers from row to row of the mean image; 0: a mean for each channel */
    int64_t flip;
} Window;

typedef void Reverse(const unsigned char *from, int64_t count, int64_t size, unsigned char *to);
typedef void Subtract(const unsigned char *bytes, const float *mean, float scale, int64_t count,
                      float *values);
typedef void CopyLines(const float *from, int64_t lines, float *to);

enum { LINE = 16 }; /* numbers in a line of the cache */

/* A row on its way to memory, behind the end of the one before that filled no line. `to` is where that end belongs,
   at the beginning of a line; the first `skipped` numbers there are not ours. The row is aligned, since
   unaligned stores take longer. */
typedef struct {
    float *to, *row;
    int64_t carried, skipped;
} Lines;

/* Write the whole lines. */
static void write_lines(Lines *lines, int64_t count, CopyLines *copy)
{
    float *from = lines->row - lines->carried;
    int64_t whole = (lines->carried + count) / LINE, first = 0;
    if (whole && lines->skipped) {
        memcpy(lines->to + lines->skipped, from + lines->skipped, (LINE - lines->skipped) * sizeof(float));
        lines->skipped = 0;
        first = 1;
    }
    copy(from + first * LINE, whole - first, lines->to + first * LINE);
    lines->to += whole * LINE;
    lines->carried += count - whole * LINE;
    memmove(lines->row - lines->carried, from + whole * LINE, lines->carried * sizeof(float));
}

/* The pixels of a row, each of `size` bytes, in reverse order. */
static void reverse_pixels(const unsigned char *from, int64_t count, int64_t size, unsigned char *to)
{
    for (int64_t i = 0; i < count; i++)
        memcpy(to + i * size, from + (count - 1 - i) * size, size);
}

static void subtract_and_scale(const unsigned char *restrict bytes, const float *restrict mean, float scale,
                               int64_t count, float *restrict values)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = ((float)bytes[i] - mean[i]) * scale;
}

/* copy: by which lines are written; NULL: each row is written at once. Returns whether there was too little
   memory. */
static int write_window(const unsigned char *image, const int64_t *sizes, const float *mean, float scale,
                        float *values, Reverse *reverse, Subtract *subtract, CopyLines *copy)
{
    const Window window = *(const Window *)sizes;
    int64_t count = window.width * window.channels, pixel = window.channels * sizeof(float);
    float *mean_row = malloc((2 * count + 2 * LINE) * sizeof(float) + count);
    if (!mean_row)
        return 1;
    /* The next line's beginning after the mean and the most that is carried. */
    float *aligned = mean_row + count + LINE;
    aligned += -(uintptr_t)aligned / sizeof(float) % LINE;
    int64_t skipped = (uintptr_t)values / sizeof(float) % LINE;
    Lines lines = {values - skipped, aligned, skipped, skipped};
    unsigned char *row = (unsigned char *)(aligned + count);
    for (int64_t x = 0; window.mean_stride == 0 && x < window.width; x++)
        memcpy(mean_row + x * window.channels, mean, pixel);
    for (int64_t y = 0; y < window.height; y++, image += window.row_stride) {
        const float *means = window.mean_stride ? mean + y * window.mean_stride : mean_row;
        const unsigned char *bytes = image;
        if (window.flip) {
            reverse(image, window.width, window.channels, row);
            bytes = row;
            if (window.mean_stride) {
                reverse_pixels((const unsigned char *)means, window.width, pixel, (unsigned char *)mean_row);
                means = mean_row;
            }
        }
        if (!copy) {
            subtract(bytes, means, scale, count, values + y * count);
            continue;
        }
        subtract(bytes, means, scale, count, lines.row);
        write_lines(&lines, count, copy);
    }
    if (copy)
        memcpy(lines.to + lines.skipped, lines.row - lines.carried + lines.skipped,
               (lines.carried - lines.skipped) * sizeof(float));
    free(mean_row);
    return 0;
}

int imae_pixels_default(const unsigned char *image, const int64_t *sizes, const float *mean, float scale,
                        float *values)
{
    return write_window(image, sizes, mean, scale, values, reverse_pixels, subtract_and_scale, NULL);
}

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define PIXELS_AVX2 __attribute__((target("avx2")))

/* The same as reverse_pixels; of three bytes, five pixels at once, which reads one byte before them. */
PIXELS_AVX2 static void reverse_pixels_avx2(const unsigned char *from, int64_t count, int64_t size,
                                            unsigned char *to)
{
    const __m128i order = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
    int64_t i = 0;
    for (; size == 3 && i + 5 < count; i += 5) {
        __m128i pixels = _mm_loadu_si128((const __m128i *)(from + 3 * (count - 5 - i) - 1));
        _mm_storeu_si128((__m128i *)(to + 3 * i), _mm_shuffle_epi8(pixels, order));
    }
    for (; size == 3 && i < count; i++)
        memcpy(to + 3 * i, from + 3 * (count - 1 - i), 3);
    reverse_pixels(from, count - i, size, to + size * i);
}

PIXELS_AVX2 static void subtract_and_scale_avx2(const unsigned char *bytes, const float *mean, float scale,
                                                int64_t count, float *values)
{
    const __m256 factor = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i whole = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + i)));
        __m256 value = _mm256_sub_ps(_mm256_cvtepi32_ps(whole), _mm256_loadu_ps(mean + i));
        _mm256_storeu_ps(values + i, _mm256_mul_ps(value, factor));
    }
    subtract_and_scale(bytes + i, mean + i, scale, count - i, values + i);
}

/* Past the caches. */
PIXELS_AVX2 static void copy_lines_avx2(const float *from, int64_t lines, float *to)
{
    for (int64_t i = 0; i < lines * LINE; i += 8)
        _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
}

PIXELS_AVX2 int imae_pixels_avx2(const unsigned char *image, const int64_t *sizes, const float *mean,
                                 float scale, float *values)
{
    int failed = write_window(image, sizes, mean, scale, values, reverse_pixels_avx2, subtract_and_scale_avx2,
                              copy_lines_avx2);
    _mm_sfence(); /* before another thread is told that the values are there */
    return failed;
}

#endif

#endif
