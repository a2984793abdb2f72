// Accessibility checks of a page; each returns the elements that fail.

function channels(text) {
  const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
  return [r, g, b, a];
}

const over = (top, below) => top.slice(0, 3).map((value, i) => value * top[3] + below[i] * (1 - top[3]));

// Relative luminance as WCAG 2 defines it.
function luminance(colour) {
  const [r, g, b] = colour.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function groundOf(element) {
  const chain = [];
  for (let each = element; each; each = each.parentElement) chain.unshift(each);
  return chain.reduce((below, each) => over(channels(getComputedStyle(each).backgroundColor), below), [255, 255, 255]);
}

// Texts with a contrast below 4.5, and the number of all texts.
function poorContrast() {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = [];
  let seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("button:disabled, script, style")) continue;
    seen += 1;
    const style = getComputedStyle(element), below = groundOf(element);
    const ink = over(channels(element.closest("svg") ? style.fill : style.color), below);
    const [dark, light] = [luminance(ink), luminance(below)].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) poor.push([text.slice(0, 40), ratio.toFixed(2)]);
  }
  return { seen, poor };
}

const shortly = (elements) => elements.map((element) => element.outerHTML.slice(0, 100));

function nameless() {
  const all = [...document.querySelectorAll("button, input, select, a, [tabindex='0'], svg.plot, canvas")];
  return shortly(all.filter((element) => {
    const labels = element.labels ? [...element.labels].map((label) => label.textContent).join(" ") : "";
    return !(element.getAttribute("aria-label") || labels || element.textContent).trim();
  }));
}

function danglingReferences() {
  const all = [...document.querySelectorAll("[aria-labelledby], [for], a[href^='#']")];
  const target = (element) => element.getAttribute("aria-labelledby") || element.getAttribute("for") || element.getAttribute("href").slice(1);
  return shortly(all.filter((element) => !document.getElementById(target(element))));
}

function tooSmall(least) {
  const all = [...document.querySelectorAll("button, select, nav a")].filter((element) => element.checkVisibility());
  return shortly(all.filter((element) => Math.min(element.getBoundingClientRect().width, element.getBoundingClientRect().height) < least));
}

function unreachable() {
  return shortly([...document.querySelectorAll("button, a, select, input")].filter((element) => element.tabIndex !== 0));
}
