// Colours of pictures. Safe for the colour-blind: orange and blue differ in lightness too (Okabe and Ito).
const COLOURS = {
  missed: [86, 180, 233],   // truth that the prediction lacks
  extra: [230, 120, 0],     // prediction that the truth lacks
  confused: [240, 228, 66], // foreground in both, but not the same cell
  background: [245, 245, 245], // class 0 where another is true
  truth: [60, 220, 140],
  prediction: [255, 80, 200],
  unjudged: [110, 90, 40],
};
const MARKS = {
  split: { letter: "S", colour: "#f0a020", shape: "circle" },
  merge: { letter: "M", colour: "#6cc4f5", shape: "square" },
  missed: { letter: "-", colour: "#8be0b5", shape: "circle" },
  extra: { letter: "+", colour: "#f29ac0", shape: "square" },
  here: { letter: "", colour: "#ffffff", shape: "circle" }, // no error: what was looked for
  wrong: { letter: "!", colour: "#f2e14c", shape: "circle" },
};
const CLASSES = [[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];

const rgb = (colour) => `rgb(${colour.join(" ")})`;

// A colour for each label: hues a golden ratio apart, in three lightnesses, so that neighbours differ.
function labelColour(label) {
  if (!label) return [0, 0, 0];
  const hue = (label * 0.6180339887) % 1;
  const light = 0.36 + 0.17 * (label % 3);
  return fromHue(hue, light);
}

function fromHue(hue, light) {
  const strength = 0.75 * Math.min(light, 1 - light);
  const channel = (n) => {
    const k = (n + hue * 12) % 12;
    return Math.round(255 * (light - strength * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

const classColour = (number) => CLASSES[number % CLASSES.length];
