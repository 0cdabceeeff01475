"use strict";
// Maps of one byte a cell, as canvases. Colours go from dark to light (viridis), so that order shows without hue.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const NONE = 255;
function colour(byte) {
  if (byte === NONE) return [255, 0, 170];
  const place = (byte / 254) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2), part = place - low;
  return STOPS[low].map((from, i) => Math.round(from + (STOPS[low + 1][i] - from) * part));
}
function heat(bytes, rows, columns, label) {
  const canvas = document.createElement("canvas");
  canvas.width = columns; canvas.height = rows;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) image.data.set([...colour(bytes[i]), 255], i * 4);
  context.putImageData(image, 0, 0);
  return canvas;
}
function decoded(text) { return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)); }
function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function figure(canvas, caption) {
  const made = element("figure");
  made.append(canvas, element("figcaption", caption));
  return made;
}
function scalebar(peak, words) {
  const made = element("div", null, "scalebar"), bytes = Uint8Array.from({ length: 255 }, (_, i) => i);
  made.append(element("span", "0"), heat(bytes, 1, 255, "colour scale from 0 to " + peak), element("span", peak.toPrecision(3) + " " + words));
  return made;
}
