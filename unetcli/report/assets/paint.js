// Paints the views of one section, pixel by pixel, from its stored layers.
const decodeImage = async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
};

async function pixelsOf(url, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(await decodeImage(url), 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

const grey = (data) => Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
const labelled = (data) => Uint32Array.from({ length: data.length / 4 }, (_, i) => data[4 * i] | (data[4 * i + 1] << 8) | (data[4 * i + 2] << 16));

// Decodes the layers of a picture to arrays of pixels; missing layers are null.
async function decodePicture(picture) {
  const { width, height } = picture;
  const read = async (name, as) => (picture[name] ? as(await pixelsOf(picture[name], width, height)) : null);
  const truth = await read("truth", picture.truth_kind === "mask" ? grey : labelled);
  return {
    width, height, truth,
    image: await read("image", (data) => data),
    probability: await read("probability", grey),
    labels: await read("labels", labelled),
    classes: await read("classes", labelled),
    valid: await read("valid", grey),
  };
}

// Predicted value of each pixel: a label, a class, or 1 above the threshold.
function predicted(layers, threshold) {
  if (layers.labels) return layers.labels;
  if (layers.classes) return layers.classes;
  const cut = threshold * 255;
  return Uint8Array.from(layers.probability, (value) => (value > cut ? 1 : 0));
}

// Mask of the pixels whose right or lower neighbour has another value.
function outlines(values, width, height) {
  const found = new Uint8Array(values.length);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if ((x + 1 < width && values[i] !== values[i + 1]) || (y + 1 < height && values[i] !== values[i + width])) found[i] = 1;
    }
  }
  return found;
}

const paintGrey = (values, scale = 1) => (i) => [values[i] * scale, values[i] * scale, values[i] * scale];

// Function that returns the colour of a pixel in a view.
function painter(view, layers, picture, threshold) {
  const colour = picture.truth_kind === "classes" ? classColour : labelColour;
  if (view === "image") return (i) => [layers.image[4 * i], layers.image[4 * i + 1], layers.image[4 * i + 2]];
  if (view === "probability") return paintGrey(layers.probability);
  if (view === "truth") return picture.truth_kind === "mask" ? paintGrey(layers.truth) : (i) => colour(layers.truth[i]);
  if (view === "prediction") {
    const values = predicted(layers, threshold);
    return picture.truth_kind === "mask" && !layers.labels ? paintGrey(values, 255) : (i) => colour(values[i]);
  }
  return differencePainter(layers, picture, threshold);
}

// Dimmed image with missed and extra foreground and confused cells in colour; for several classes, the wrong ones.
function differencePainter(layers, picture, threshold) {
  const values = predicted(layers, threshold);
  const base = (i) => (layers.image ? 0.2126 * layers.image[4 * i] + 0.7152 * layers.image[4 * i + 1] + 0.0722 * layers.image[4 * i + 2] : layers.truth[i] ? 190 : 60);
  const over = { labels: wrongCell(layers, values), classes: wrongClass(layers, values), mask: wrongSide(layers, values) }[picture.truth_kind];
  return (i) => {
    const grey = 30 + 0.7 * base(i);
    const colour = layers.valid && !layers.valid[i] ? null : over(i);
    return colour ? colour.map((value) => 0.75 * value + 0.25 * grey) : [grey, grey, grey];
  };
}

const wrongSide = (layers, values) => (i) => (!layers.truth[i] === !values[i] ? null : layers.truth[i] ? COLOURS.missed : COLOURS.extra);
const wrongClass = (layers, values) => (i) => (layers.truth[i] === values[i] ? null : values[i] ? classColour(values[i]) : COLOURS.background);

function wrongCell(layers, values) {
  const mates = layers.labels ? cellMates(layers.truth, values) : null;
  const side = wrongSide(layers, values);
  return (i) => side(i) || (mates && values[i] && mates.get(layers.truth[i]) !== values[i] ? COLOURS.confused : null);
}

// Found cell of each true cell: the one that covers more than half of it, unless it covers several true cells.
function cellMates(truth, found) {
  const sizes = new Map(), shared = new Map(), covers = new Map(), mates = new Map();
  const add = (map, key) => map.set(key, (map.get(key) || 0) + 1);
  for (let i = 0; i < truth.length; i++) {
    if (truth[i]) { add(sizes, truth[i]); if (found[i]) add(shared, truth[i] * 2 ** 24 + found[i]); }
  }
  for (const [pair, pixels] of shared) {
    const cell = Math.floor(pair / 2 ** 24), result = pair % 2 ** 24;
    if (2 * pixels > sizes.get(cell)) { mates.set(cell, result); add(covers, result); }
  }
  for (const [cell, result] of mates) if (covers.get(result) > 1) mates.delete(cell);
  return mates;
}

// A view as an image of the picture's own pixels.
function paint(view, layers, picture, options) {
  const { width, height } = layers;
  const image = new ImageData(width, height);
  const data = image.data;
  const colour = painter(view, layers, picture, options.threshold);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = colour(i);
    data[4 * i] = r; data[4 * i + 1] = g; data[4 * i + 2] = b; data[4 * i + 3] = 255;
  }
  if (options.truth) overlay(data, outlines(layers.truth, width, height), COLOURS.truth);
  if (options.prediction) overlay(data, outlines(predicted(layers, options.threshold), width, height), COLOURS.prediction);
  if (layers.valid) hatch(data, layers.valid, width);
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function overlay(data, pixels, colour) {
  for (let i = 0; i < pixels.length; i++) {
    if (pixels[i]) { data[4 * i] = colour[0]; data[4 * i + 1] = colour[1]; data[4 * i + 2] = colour[2]; }
  }
}

// Draws stripes on pixels that were not evaluated.
function hatch(data, valid, width) {
  for (let i = 0; i < valid.length; i++) {
    if (!valid[i] && (i % width + Math.floor(i / width)) % 8 < 3) {
      for (let c = 0; c < 3; c++) data[4 * i + c] = 0.5 * data[4 * i + c] + 0.5 * COLOURS.ignored[c];
    }
  }
}
