"use strict";

// How an image becomes the input of the model. The steps, their order and their numbers are those of
// `imae run` (imae.converters.preprocessing): decode, resize, subtract the mean, crop from the centre, scale.
//
// An image is {pixels, height, width, channels}: bytes, row by row, the channels of a pixel side by side.
// A plan says what is done; html_page.py makes it from the model's metadata:
//
//   channels    "BGR", "RGB" or "GRAY"
//   resize      null, or {mode: "WARP" | "FIT_SMALL_SIZE" | "FIT_LARGE_SIZE_AND_PAD", height, width, pad}
//   crop        null, or {height, width, excluded}: excluded rows and columns at the lower right
//   mean        [], or one number, or one for each channel
//   mean_image  null, or {channels, height, width, data}: a Float32Array, channel by channel
//   scale       the factor at the end
//   layout      "NCHW" or "NHWC"
//   dtype       "float32" or "uint8"

const prepare = (() => {
  // Weights of bilinear interpolation have 11 bits, as in OpenCV, so that sums are those of cv2.resize.
  const ONE = 2048;

  /** The bytes R, G, B, A of a canvas as an image of one or three channels; A is dropped. */
  function fromCanvas(rgba, height, width, order) {
    const count = height * width;
    if (order === "GRAY") {
      const pixels = new Uint8Array(count);
      for (let i = 0, at = 0; i < count; i++, at += 4) {
        // 0.299 R + 0.587 G + 0.114 B in 14 bits, as OpenCV reads a BMP; of a PNG it truncates.
        pixels[i] = (4899 * rgba[at] + 9617 * rgba[at + 1] + 1868 * rgba[at + 2] + 8192) >> 14;
      }
      return { pixels, height, width, channels: 1 };
    }
    const pixels = new Uint8Array(3 * count);
    const [first, last] = order === "RGB" ? [0, 2] : [2, 0];
    for (let from = 0, to = 0; to < pixels.length; from += 4, to += 3) {
      pixels[to] = rgba[from + first];
      pixels[to + 1] = rgba[from + 1];
      pixels[to + 2] = rgba[from + last];
    }
    return { pixels, height, width, channels: 3 };
  }

  /** For each new place: the two old places between which it lies, and their weights. */
  function places(size, newSize, keepsOuter) {
    const scale = 1 / (newSize / size);
    const [low, high] = [new Int32Array(newSize), new Int32Array(newSize)];
    const [lowWeight, highWeight] = [new Int32Array(newSize), new Int32Array(newSize)];
    for (let i = 0; i < newSize; i++) {
      const centre = Math.fround((i + 0.5) * scale - 0.5);
      let place = Math.floor(centre);
      let share = Math.fround(centre - place);
      if (!keepsOuter && (place < 0 || place >= size - 1)) {
        place = place < 0 ? 0 : size - 1;
        share = 0;
      }
      low[i] = Math.min(Math.max(place, 0), size - 1);
      high[i] = Math.min(Math.max(place + 1, 0), size - 1);
      lowWeight[i] = roundHalfEven(Math.fround(1 - share) * ONE);
      highWeight[i] = roundHalfEven(share * ONE);
    }
    return { low, high, lowWeight, highWeight };
  }

  function roundHalfEven(value) {
    const floor = Math.floor(value);
    const rest = value - floor;
    if (rest === 0.5) {
      return floor + (floor % 2);
    }
    return rest < 0.5 ? floor : floor + 1;
  }

  /** The image resized as by cv2.resize: between the four nearest pixels, without antialiasing. */
  function resizeBilinear(image, newHeight, newWidth) {
    const { pixels, height, width, channels } = image;
    if (height === newHeight && width === newWidth) {
      return image;
    }
    const rows = places(height, newHeight, true);
    const columns = places(width, newWidth, false);
    const length = newWidth * channels;
    const result = new Uint8Array(newHeight * length);
    // Rows that are resized along x; two neighbouring new rows often need the same ones.
    let kept = new Map();
    const resizedRow = (y) => {
      const row = new Int32Array(length);
      const start = y * width * channels;
      for (let x = 0, to = 0; x < newWidth; x++) {
        const low = start + columns.low[x] * channels;
        const high = start + columns.high[x] * channels;
        for (let c = 0; c < channels; c++, to++) {
          row[to] = pixels[low + c] * columns.lowWeight[x] + pixels[high + c] * columns.highWeight[x];
        }
      }
      return row;
    };
    for (let y = 0; y < newHeight; y++) {
      const above = kept.get(rows.low[y]) ?? resizedRow(rows.low[y]);
      const below = rows.high[y] === rows.low[y] ? above : (kept.get(rows.high[y]) ?? resizedRow(rows.high[y]));
      kept = new Map([[rows.low[y], above], [rows.high[y], below]]);
      const [a, b] = [rows.lowWeight[y], rows.highWeight[y]];
      for (let x = 0, to = y * length; x < length; x++, to++) {
        result[to] = (((a * (above[x] >> 4)) >> 16) + ((b * (below[x] >> 4)) >> 16) + 2) >> 2;
      }
    }
    return { pixels: result, height: newHeight, width: newWidth, channels };
  }

  /** The size of an image of `height` x `width` after the resizing, before any padding. */
  function sizeAfter(resize, height, width) {
    const [old, wanted] = [Math.fround(width / height), Math.fround(resize.width / resize.height)];
    if (resize.mode === "FIT_SMALL_SIZE" ? old < wanted : resize.mode !== "WARP" && old > wanted) {
      return [Math.floor(Math.fround(resize.width / old)), resize.width];
    }
    if (resize.mode === "WARP") {
      return [resize.height, resize.width];
    }
    return [resize.height, Math.floor(Math.fround(old * resize.height))];
  }

  /** The image in the middle of a larger one that is filled with `values`, one or one for each channel. */
  function padded(image, height, width, values) {
    const { channels } = image;
    const result = new Uint8Array(height * width * channels);
    for (let i = 0; i < result.length; i++) {
      result[i] = values[values.length === 1 ? 0 : i % channels];
    }
    const [top, left] = [(height - image.height) >> 1, (width - image.width) >> 1];
    const length = image.width * channels;
    for (let y = 0; y < image.height; y++) {
      const row = image.pixels.subarray(y * length, (y + 1) * length);
      result.set(row, ((top + y) * width + left) * channels);
    }
    return { image: { pixels: result, height, width, channels }, top, left };
  }

  /** A window of the image. */
  function cropped(image, top, left, height, width) {
    const { pixels, channels } = image;
    const length = width * channels;
    const result = new Uint8Array(height * length);
    for (let y = 0; y < height; y++) {
      const start = ((top + y) * image.width + left) * channels;
      result.set(pixels.subarray(start, start + length), y * length);
    }
    return { pixels: result, height, width, channels };
  }

  /**
   * The input of the model for one image.
   *
   * Returns {data, dims, seen, window}: `seen` is the image after resize and crop, `window` the part of the
   * original image that it shows, {top, left, height, width} in pixels of the original.
   */
  function modelInput(original, plan) {
    let image = original;
    let [top, left] = [0, 0];
    let [yScale, xScale] = [1, 1]; // pixels of the original for one of the resized image
    if (plan.resize !== null) {
      const [height, width] = sizeAfter(plan.resize, image.height, image.width);
      if (height < 1 || width < 1) {
        throw new Error(`the image, ${image.height} × ${image.width}, is too long or too high to be resized`);
      }
      [yScale, xScale] = [image.height / height, image.width / width];
      image = resizeBilinear(image, height, width);
      if (plan.resize.mode === "FIT_LARGE_SIZE_AND_PAD") {
        const made = padded(image, plan.resize.height, plan.resize.width, plan.resize.pad);
        image = made.image;
        [top, left] = [-made.top, -made.left];
      }
    }
    let [y, x] = [0, 0];
    const size = [image.height, image.width];
    if (plan.crop !== null) {
      const { height, width, excluded } = plan.crop;
      if (image.height < height + excluded || image.width < width + excluded) {
        throw new Error(
          `the image, ${image.height} × ${image.width}, is smaller than the crop, ${height} × ${width}`,
        );
      }
      y = (image.height - height - excluded) >> 1;
      x = (image.width - width - excluded) >> 1;
      image = cropped(image, y, x, height, width);
    }
    const window = {
      top: (top + y) * yScale,
      left: (left + x) * xScale,
      height: image.height * yScale,
      width: image.width * xScale,
    };
    return { ...tensor(image, plan, y, x, size), seen: image, window };
  }

  /** The numbers of an image whose first pixel is (y, x) of the image of `size` that the mean belongs to. */
  function tensor(image, plan, y, x, size) {
    const { pixels, height, width, channels } = image;
    const nhwc = plan.layout === "NHWC";
    const dims = nhwc ? [1, height, width, channels] : [1, channels, height, width];
    const mean = plan.mean_image;
    if (mean !== null && (mean.channels !== channels || mean.height !== size[0] || mean.width !== size[1])) {
      throw new Error(
        `the mean image is ${mean.channels} × ${mean.height} × ${mean.width}, ` +
          `the image ${channels} × ${size[0]} × ${size[1]}`,
      );
    }
    const data = plan.dtype === "uint8" ? new Uint8Array(pixels.length) : new Float32Array(pixels.length);
    const scale = Math.fround(plan.scale);
    for (let c = 0; c < channels; c++) {
      const value = plan.mean.length > 1 ? plan.mean[c] : (plan.mean[0] ?? 0);
      for (let row = 0; row < height; row++) {
        const from = row * width * channels + c;
        const to = nhwc ? from : (c * height + row) * width;
        const meanRow = mean === null ? 0 : (c * mean.height + y + row) * mean.width + x;
        for (let column = 0; column < width; column++) {
          const pixel = pixels[from + column * channels];
          const place = to + (nhwc ? column * channels : column);
          const subtracted = mean === null ? value : mean.data[meanRow + column];
          // Each operation rounds to single precision, as in Caffe.
          data[place] = plan.dtype === "uint8" ? pixel : Math.fround(pixel - subtracted) * scale;
        }
      }
    }
    return { data, dims };
  }

  return { fromCanvas, resizeBilinear, modelInput };
})();
