/* A window of an image becomes numbers of a batch, in one pass over the memory:

       value = (byte - mean) scale

   in single precision, each operation rounded, as numpy and OpenCV compute it. The image is `height` rows of
   `width` pixels of `channels` bytes; if it is mirrored, the pixels of each row are reversed. The values are
   contiguous and are not read again soon: with AVX2 they are written past the caches, which otherwise read the
   memory first. */

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

/* Returns whether there was too little memory. */
static int write_window(const unsigned char *image, const int64_t *sizes, const float *mean, float scale,
                        float *values, Reverse *reverse, Subtract *subtract)
{
    const Window window = *(const Window *)sizes;
    int64_t count = window.width * window.channels, pixel = window.channels * sizeof(float);
    float *mean_row = malloc(count * (sizeof(float) + 1));
    if (!mean_row)
        return 1;
    unsigned char *row = (unsigned char *)(mean_row + count);
    for (int64_t x = 0; window.mean_stride == 0 && x < window.width; x++)
        memcpy(mean_row + x * window.channels, mean, pixel);
    for (int64_t y = 0; y < window.height; y++, image += window.row_stride, values += count) {
        const float *means = window.mean_stride ? mean + y * window.mean_stride : mean_row;
        if (!window.flip) {
            subtract(image, means, scale, count, values);
            continue;
        }
        reverse(image, window.width, window.channels, row);
        if (window.mean_stride)
            reverse_pixels((const unsigned char *)means, window.width, pixel, (unsigned char *)mean_row);
        subtract(row, mean_row, scale, count, values);
    }
    free(mean_row);
    return 0;
}

int imae_pixels_default(const unsigned char *image, const int64_t *sizes, const float *mean, float scale,
                        float *values)
{
    return write_window(image, sizes, mean, scale, values, reverse_pixels, subtract_and_scale);
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
    /* Up to the next multiple of 32 bytes, as the instruction that writes past the caches requires. */
    int64_t i = minimum(count, (int64_t)(-(uintptr_t)values % 32 / sizeof(float)));
    subtract_and_scale(bytes, mean, scale, i, values);
    for (; i + 8 <= count; i += 8) {
        __m256i whole = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + i)));
        __m256 value = _mm256_sub_ps(_mm256_cvtepi32_ps(whole), _mm256_loadu_ps(mean + i));
        _mm256_stream_ps(values + i, _mm256_mul_ps(value, factor));
    }
    subtract_and_scale(bytes + i, mean + i, scale, count - i, values + i);
}

PIXELS_AVX2 int imae_pixels_avx2(const unsigned char *image, const int64_t *sizes, const float *mean,
                                 float scale, float *values)
{
    int failed =
        write_window(image, sizes, mean, scale, values, reverse_pixels_avx2, subtract_and_scale_avx2);
    _mm_sfence(); /* before another thread is told that the values are there */
    return failed;
}

#endif

#endif
