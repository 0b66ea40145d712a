
// The page: it shows what html_page.py has put into `facts`, and runs the model on an image.
//
// A model may be a stranger's. Whatever comes from it is put into the page as text (textContent), and its
// numbers are checked before they become sizes.

(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const byId = (id) => document.getElementById(id);
  const BEST = 5; // classes
  const MOST_BOXES = 200;
  const COLOURS = 6;
  const SMALL = 320; // pixels; a smaller image is enlarged to this width or height

  // -- small helpers ------------------------------------------------------------------------------------------

  /** A new element with a class and children; a string becomes text. */
  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) {
      made.className = className;
    }
    made.append(...children);
    return made;
  }

  const shapeText = (shape) => (shape === null ? "not stated" : shape.length ? shape.join(" × ") : "one number");
  const countText = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  function sizeText(bytes) {
    const units = ["bytes", "kB", "MB", "GB"];
    const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
    const value = bytes / 1000 ** power;
    return `${power && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
  }

  function numberText(value) {
    return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);
  }

  function percentText(share) {
    return `${(100 * share).toFixed(share >= 0.1 ? 1 : 2)} %`;
  }

  function notice(text) {
    byId("notices").append(element("p", "notice", text));
  }

  function className(index) {
    const key = String(index);
    return Object.hasOwn(facts.names, key) ? facts.names[key] : `class ${key}`;
  }

  function fromBase64(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) {
      bytes[i] = binary.charCodeAt(i);
    }
    return bytes;
  }

  // -- what the model is --------------------------------------------------------------------------------------

  /** A table; a cell is text, or a node. `kinds` are the classes of the columns. */
  function table(heads, kinds, rows) {
    const head = element("tr", "");
    heads.forEach((text, i) => {
      const cell = element("th", kinds[i] === "number" ? "number" : "", text);
      cell.scope = "col";
      head.append(cell);
    });
    const body = element("tbody", "");
    for (const row of rows) {
      body.append(element("tr", "", ...row.map((cell, i) => element("td", kinds[i], cell))));
    }
    return element("table", "", element("thead", "", head), body);
  }

  function showModel() {
    byId("title").textContent = facts.title;
    byId("summary").textContent = [
      `ONNX, opset ${facts.opset}`,
      countText(facts.layers.length, "layer"),
      countText(facts.parameters, "parameter"),
      sizeText(facts.size),
      ...(facts.producer ? [`made by ${facts.producer}`] : []),
    ].join(" · ");
    facts.warnings.forEach((text) => notice(text));
    if (facts.problem) {
      notice(facts.problem);
    }
    byId("steps").append(...facts.steps.map((text) => element("li", "", text)));
    byId("steps").closest("section").hidden = !facts.steps.length;
    const value = (kind) => (info) => [kind, info.name, info.dtype, shapeText(info.shape)];
    byId("values").append(
      table(
        ["", "Name", "Type", "Shape"],
        ["quiet", "name", "", "shape"],
        [...facts.inputs.map(value("input")), ...facts.outputs.map(value("output"))],
      ),
    );
    showLayers();
    byId("measured").append(...facts.measured.map((text) => element("p", "name", text)));
    byId("description").textContent = facts.description;
    byId("description").hidden = !facts.description;
    for (const [key, text] of [...facts.metadata, ["SHA-256 of the model", facts.sha256]]) {
      byId("metadata").append(element("dt", "name", key), element("dd", "name code", text));
    }
  }

  function showLayers() {
    const rows = facts.layers.map((layer, i) => [
      String(i + 1),
      layer.name,
      layer.type,
      layer.outputs.map(({ shape }) => shapeText(shape)).join(", "),
      layer.parameters ? layer.parameters.toLocaleString("en") : "",
    ]);
    byId("layers-summary").textContent =
      "In the order in which they run, with the shape of what each computes. A layer of Caffe may be several here.";
    byId("layers").append(
      table(
        ["", "Name", "Type", "Shape", "Parameters"],
        ["number quiet", "name", "", "shape", "number"],
        rows,
      ),
    );
  }

  // -- the model and its runtime ------------------------------------------------------------------------------

  /** The model's bytes, from the parts in which the page holds them. */
  function modelBytes() {
    const bytes = new Uint8Array(facts.size);
    let at = 0;
    for (const part of document.querySelectorAll("script.model")) {
      const piece = fromBase64(part.textContent);
      bytes.set(piece, at);
      at += piece.length;
      part.remove(); // its text is needed no more
    }
    return bytes;
  }

  function offerDownload(bytes) {
    const link = byId("download");
    link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
    link.download = facts.file;
  }

  async function decompressed(text) {
    const stream = new Blob([fromBase64(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function loadScript(address) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = address;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`there is no ${address} beside this page`));
      document.head.append(script);
    });
  }

  /** ONNX Runtime, from the file beside the page: a browser loads scripts from a disk, and nothing else. */
  async function loadRuntime() {
    await loadScript("ort/onnxruntime-web.js");
    const runtime = globalThis.ort; // its own script is in the file, too
    const { version, loader, wasm } = globalThis.onnxruntimeWeb;
    delete globalThis.onnxruntimeWeb;
    const module = new Blob([await decompressed(loader)], { type: "text/javascript" });
    runtime.env.wasm.numThreads = 1; // several need a server that isolates the page
    runtime.env.wasm.wasmPaths = { mjs: URL.createObjectURL(module) };
    runtime.env.wasm.wasmBinary = await decompressed(wasm);
    byId("runtime").textContent = `ONNX Runtime Web ${version}, © Microsoft Corporation, MIT license.`;
    return runtime;
  }

  // -- an image -----------------------------------------------------------------------------------------------

  /** The pixels of an image file, as they are stored: without colour management, turned as its EXIF says. */
  async function decode(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    } catch {
      throw new Error(`“${file.name}” is not an image that this browser can read`);
    }
    const canvas = byId("image");
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    let transparent = false;
    for (let i = 3; i < data.length && !transparent; i += 4) {
      transparent = data[i] < 255;
    }
    const exact = transparent ? readByWebGL(bitmap) : data;
    bitmap.close();
    return { data: exact ?? data, height: canvas.height, width: canvas.width, isExact: exact !== null };
  }

  /**
   * The pixels of an image with transparent parts, whose colours a canvas rounds or drops; null without WebGL.
   * `imae run` drops the transparency and keeps the colours.
   */
  function readByWebGL(bitmap) {
    const { width, height } = bitmap;
    const gl = document.createElement("canvas").getContext("webgl");
    if (gl === null || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      return null;
    }
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const data = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
    const failed = gl.getError() !== gl.NO_ERROR;
    gl.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow few contexts at a time
    return failed ? null : data;
  }

  function showImage(file, image) {
    const canvas = byId("image");
    const factor = SMALL / Math.max(image.width, image.height);
    const enlarged = factor > 1;
    canvas.className = enlarged ? "enlarged" : "";
    canvas.style.width = enlarged ? `${Math.round(image.width * factor)}px` : "";
    byId("boxes").replaceChildren();
    const notes = image.isExact ? "" : "; the colours of its transparent parts are not known exactly in this browser";
    byId("caption").textContent = `${file.name || "pasted image"}, ${image.width} × ${image.height} pixels${notes}`;
    byId("figure").hidden = false;
    byId("drop").classList.add("filled");
    byId("invitation").hidden = true;
    byId("button").textContent = "Choose another image";
  }

  /** Draw the image as the model gets it, before mean and scale. */
  function showSeen(image, order) {
    const { pixels, height, width, channels } = image;
    const canvas = byId("seen");
    canvas.width = width;
    canvas.height = height;
    canvas.className = Math.max(width, height) < SMALL ? "enlarged" : "";
    const rgba = new Uint8ClampedArray(4 * height * width);
    const [red, green, blue] = channels === 1 ? [0, 0, 0] : order === "RGB" ? [0, 1, 2] : [2, 1, 0];
    for (let from = 0, to = 0; to < rgba.length; from += channels, to += 4) {
      rgba[to] = pixels[from + red];
      rgba[to + 1] = pixels[from + green];
      rgba[to + 2] = pixels[from + blue];
      rgba[to + 3] = 255;
    }
    canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    byId("seen-caption").textContent = `What the model sees: ${height} × ${width} pixels, before mean and scale.`;
    byId("seen-figure").hidden = false;
  }

  /** A batch of as many images as the model needs: this one, then zeros. */
  function batch(made, shape) {
    const count = typeof shape[0] === "number" ? shape[0] : 1;
    if (count === 1) {
      return made;
    }
    const data = new made.data.constructor(count * made.data.length);
    data.set(made.data);
    return { data, dims: [count, ...made.dims.slice(1)] };
  }

  // -- the answer ---------------------------------------------------------------------------------------------

  /** Whether an output has SSD's rows: image, label, score, xmin, ymin, xmax, ymax; as many as there are boxes. */
  function hasBoxes(shape) {
    return shape?.length === 4 && shape[0] === 1 && shape[1] === 1 && typeof shape[2] !== "number" && shape[3] === 7;
  }

  function showAnswer(results, window, image) {
    const answer = byId("answer");
    answer.replaceChildren();
    byId("boxes").replaceChildren();
    for (const info of facts.outputs) {
      const { data, dims } = results[info.name];
      if (facts.outputs.length > 1) {
        answer.append(element("h3", "name", info.name));
      }
      if (!ArrayBuffer.isView(data)) {
        answer.append(element("p", "quiet", `${shapeText(dims)} texts`));
        continue;
      }
      if (hasBoxes(info.shape)) {
        answer.append(...boxesAnswer(data, window, image));
        continue;
      }
      // The first image's share of the batch.
      const count = facts.inputs[0].shape[0];
      const share = typeof count === "number" && dims[0] === count ? data.length / count : data.length;
      const values = Array.from(data.subarray(0, share), Number);
      const sizes = dims.slice(1).filter((size) => size > 1);
      const areScores = sizes.length < 2 && values.length > 1;
      answer.append(...(areScores ? classesAnswer(values) : valuesAnswer(values, dims)));
    }
  }

  /** The best classes of an output with one value for each. */
  function classesAnswer(values) {
    const sum = values.reduce((total, value) => total + value, 0);
    const areShares = values.every((value) => value >= 0) && Math.abs(sum - 1) < 1e-3;
    const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
    const [most, least] = [values[order[0]], values[order.at(-1)]];
    const list = element("ol", "classes");
    for (const index of order.slice(0, BEST)) {
      const value = values[index];
      const number = element("data", "", areShares ? percentText(value) : numberText(value));
      number.value = String(value);
      const bar = element("div", "bar");
      const length = areShares ? value : (value - least) / (most - least);
      bar.style.width = `${Number.isFinite(length) ? 100 * length : 0}%`;
      const track = element("div", "track", bar);
      track.setAttribute("aria-hidden", "true");
      const item = element("li", "", element("span", "name", className(index)), number, track);
      item.dataset.index = String(index);
      list.append(item);
    }
    const parts = [list];
    if (!areShares) {
      parts.push(element("p", "quiet", "Scores, not probabilities: the larger, the better."));
    }
    return parts;
  }

  /** Boxes over the image, a list of them, and the score from which on they are shown. */
  function boxesAnswer(data, window, image) {
    const boxes = [];
    for (let at = 0; at + 7 <= data.length; at += 7) {
      const [owner, label, score, left, top, right, bottom] = data.subarray(at, at + 7);
      // A row of -1 stands for an image without boxes; other images of the batch are not real.
      if (owner === 0 && label >= 0 && [score, left, top, right, bottom].every(Number.isFinite)) {
        boxes.push({ label, score, left, top, right, bottom });
      }
    }
    boxes.sort((a, b) => b.score - a.score);
    const slider = element("input", "");
    Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.01", value: "0.5", id: "threshold" });
    const label = element("label", "", "Score at least ");
    label.htmlFor = slider.id;
    const output = element("output", "");
    const list = element("div", "scroll");
    const show = () => {
      output.textContent = Number(slider.value).toFixed(2);
      const good = boxes.filter((box) => box.score >= Number(slider.value)).slice(0, MOST_BOXES);
      drawBoxes(good, window, image);
      list.replaceChildren(
        element("p", "quiet", `${countText(good.length, "box").replace(/boxs$/, "boxes")} of ${boxes.length}`),
        ...(good.length ? [boxTable(good, window)] : []),
      );
    };
    slider.addEventListener("input", show);
    show();
    return [element("div", "threshold", label, slider, output), list];
  }

  const colourOf = (label) => `colour-${(Math.max(1, label) - 1) % COLOURS + 1}`;

  /** A side of a box in pixels of the image, from its share of the model's input. */
  const xOf = (share, window) => window.left + share * window.width;
  const yOf = (share, window) => window.top + share * window.height;

  function boxTable(boxes, window) {
    const rows = boxes.map((box) => {
      const sides = [xOf(box.left, window), yOf(box.top, window), xOf(box.right, window), yOf(box.bottom, window)];
      const key = element("span", `key ${colourOf(box.label)}`);
      key.setAttribute("aria-hidden", "true");
      const score = element("data", "", percentText(box.score));
      score.value = String(box.score);
      const corners = sides.map((side) => side.toFixed(0));
      const place = element("data", "", `${corners[0]}, ${corners[1]} – ${corners[2]}, ${corners[3]}`);
      place.value = [box.label, box.left, box.top, box.right, box.bottom].join(" ");
      return [element("span", "name", key, className(box.label)), score, place];
    });
    return table(["Class", "Score", "Corners, in pixels"], ["", "number", "number"], rows);
  }

  function drawBoxes(boxes, window, image) {
    byId("boxes").replaceChildren(
      ...boxes.toReversed().map((box) => {
        const percent = (value, side) => 100 * Math.min(Math.max(value / side, 0), 1);
        const left = percent(xOf(box.left, window), image.width);
        const right = percent(xOf(box.right, window), image.width);
        const top = percent(yOf(box.top, window), image.height);
        const bottom = percent(yOf(box.bottom, window), image.height);
        const label = element("span", "name", `${className(box.label)} ${percentText(box.score)}`);
        const made = element("div", `box ${colourOf(box.label)}`, label);
        // The label is inside the image: below the upper side of a box at the top, to the left at the right.
        made.classList.toggle("high", top < 8);
        made.classList.toggle("right", left > 65);
        Object.assign(made.style, {
          left: `${left}%`,
          top: `${top}%`,
          width: `${Math.max(right - left, 0)}%`,
          height: `${Math.max(bottom - top, 0)}%`,
        });
        return made;
      }),
    );
    const names = boxes.map((box) => className(box.label));
    byId("image").setAttribute("aria-label", `the image, with ${names.length ? names.join(", ") : "no boxes"}`);
  }

  /** An output of another form: its shape and range; a map (N, C, H, W) is drawn. */
  function valuesAnswer(values, dims) {
    let [least, most] = [Infinity, -Infinity];
    for (const value of values) {
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
    const text =
      values.length === 1
        ? `One number: ${numberText(most)}.`
        : `${shapeText(dims)} numbers, from ${numberText(least)} to ${numberText(most)}.`;
    const parts = [element("p", "quiet", text)];
    if (dims.length !== 4 || !values.length) {
      return parts;
    }
    const [channels, height, width] = dims.slice(1);
    if (channels > 1) {
      const classes = classesOfMap(values, channels, height * width);
      return [...shares(classes), mapImage(height, width, (i) => colourOfClass(classes[i])), ...parts];
    }
    const gray = (value) => (255 * (value - least)) / (most - least || 1);
    return [mapImage(height, width, (i) => Array(3).fill(gray(values[i]))), ...parts];
  }

  /** The class with the largest value at each pixel. */
  function classesOfMap(values, channels, count) {
    const classes = new Int32Array(count);
    for (let i = 0; i < count; i++) {
      for (let c = 1; c < channels; c++) {
        if (values[c * count + i] > values[classes[i] * count + i]) {
          classes[i] = c;
        }
      }
    }
    return classes;
  }

  /** The classes with the most pixels, and their shares. */
  function shares(classes) {
    const counts = new Map();
    classes.forEach((index) => counts.set(index, (counts.get(index) ?? 0) + 1));
    const largest = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, BEST);
    const rows = largest.map(([index, count]) => {
      const key = element("span", "key");
      key.setAttribute("aria-hidden", "true");
      key.style.background = `rgb(${colourOfClass(index).join(" ")})`;
      const share = element("data", "", percentText(count / classes.length));
      share.value = String(count / classes.length);
      return [element("span", "name", key, className(index)), share];
    });
    return [table(["Class", "Share of the image"], ["", "number"], rows)];
  }

  /** PASCAL VOC's colour of a class: the bits of its number, in threes, are the high bits of R, G and B. */
  function colourOfClass(index) {
    const colour = [0, 0, 0];
    for (let bit = 0; bit < 24; bit++) {
      colour[bit % 3] |= ((index >> bit) & 1) << (7 - Math.floor(bit / 3));
    }
    return colour;
  }

  function mapImage(height, width, colourAt) {
    const canvas = element("canvas", Math.max(width, height) < SMALL ? "map enlarged" : "map");
    canvas.width = width;
    canvas.height = height;
    canvas.style.width = `${Math.max(width, Math.round(Math.min(SMALL, (SMALL * width) / height)))}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "the output as an image");
    const rgba = new Uint8ClampedArray(4 * height * width).fill(255);
    for (let i = 0; i < height * width; i++) {
      rgba.set(colourAt(i), 4 * i);
    }
    canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    return canvas;
  }

  // -- everything together ------------------------------------------------------------------------------------

  const setStatus = (text) => (byId("status").textContent = text);
  const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const message = (error) => (error instanceof Error ? error.message : String(error));

  let latest = 0; // the number of the image that was chosen last; answers to earlier ones are dropped

  async function runOn(file, ready) {
    const mine = ++latest;
    byId("answer").replaceChildren();
    byId("seen-figure").hidden = true;
    try {
      const image = await decode(file);
      if (mine !== latest) {
        return;
      }
      showImage(file, image);
      const { runtime, session } = await ready;
      setStatus("Running …");
      await painted(); // or the status would not be seen: the model runs in the page's own thread
      const pixels = prepare.fromCanvas(image.data, image.height, image.width, facts.plan.channels);
      const made = prepare.modelInput(pixels, facts.plan);
      showSeen(made.seen, facts.plan.channels);
      const { data, dims } = batch(made, facts.inputs[0].shape);
      const tensor = new runtime.Tensor(facts.plan.dtype, data, dims);
      const begun = performance.now();
      const results = await session.run({ [facts.inputs[0].name]: tensor });
      const spent = performance.now() - begun;
      if (mine !== latest) {
        return;
      }
      showAnswer(results, made.window, image);
      setStatus(`Ran in ${spent < 10 ? spent.toFixed(1) : Math.round(spent)} ms.`);
    } catch (error) {
      if (mine === latest) {
        setStatus(`Not run: ${message(error)}${facts.advice}.`);
      }
    }
  }

  /** Load the runtime and the model; the session that runs it. */
  async function start(bytes) {
    setStatus("Loading ONNX Runtime …");
    let runtime;
    try {
      runtime = await loadRuntime();
    } catch (error) {
      notice(
        `ONNX Runtime could not be loaded: ${message(error)}. Put the folder “ort” of another such page beside ` +
          "this one, or run “npm install onnxruntime-web” and write the page again.",
      );
      throw new Error("ONNX Runtime is missing");
    }
    let session;
    try {
      session = await runtime.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      notice(`ONNX Runtime cannot run this model: ${message(error)}`);
      throw new Error("ONNX Runtime cannot run this model");
    }
    setStatus("Ready. Choose an image.");
    return { runtime, session };
  }

  function acceptImages(ready) {
    const drop = byId("drop");
    const take = (files) => {
      if (files.length) {
        runOn(files[0], ready);
      }
    };
    byId("file").addEventListener("change", (event) => {
      take(event.target.files);
      event.target.value = ""; // so that the same file can be chosen again
    });
    document.addEventListener("paste", (event) => take(event.clipboardData.files));
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) {
        drop.classList.remove("over");
      }
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      take(event.dataTransfer.files);
    });
  }

  function unpackMean() {
    const mean = facts.plan?.mean_image;
    if (mean) {
      mean.data = new Float32Array(fromBase64(mean.data).buffer); // little-endian, as every browser is
    }
  }

  showModel();
  unpackMean();
  const bytes = modelBytes();
  offerDownload(bytes);
  if (facts.problem) {
    document.querySelector(".try").hidden = true;
  } else {
    const ready = start(bytes);
    ready.catch((error) => setStatus(`Not ready: ${message(error)}.`));
    acceptImages(ready);
  }
})();
