// Colours of pictures. They are safe for colour-blind readers: orange and blue also differ in lightness (Okabe and Ito).
const COLOURS = {
  missed: [86, 180, 233],   // foreground of the truth only
  extra: [230, 120, 0],     // foreground of the prediction only
  confused: [240, 228, 66], // foreground of both, but not of the same cell
  background: [245, 245, 245], // class 0 predicted where another class is true
  truth: [60, 220, 140],
  prediction: [255, 80, 200],
  ignored: [110, 90, 40],   // not evaluated
};
const MARKS = {
  split: { letter: "S", colour: "#f0a020", shape: "circle" },
  merge: { letter: "M", colour: "#6cc4f5", shape: "square" },
  missed: { letter: "-", colour: "#8be0b5", shape: "circle" },
  extra: { letter: "+", colour: "#f29ac0", shape: "square" },
  selected: { letter: "", colour: "#ffffff", shape: "circle" }, // a cell chosen in a table that is no error
  wrong: { letter: "!", colour: "#f2e14c", shape: "circle" },
};
const CLASSES = [[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];

const rgb = (colour) => `rgb(${colour.join(" ")})`;

// Colour of a label. Hues are a golden ratio apart, in three lightnesses, so that successive labels differ.
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
