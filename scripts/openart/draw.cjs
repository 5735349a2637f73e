// Draws SVG pictures into one raw file of premultiplied RGBA bytes: node draw.cjs MODULES IN.jsonl OUT.raw SIZE START
// Appends from document START on; a document that the rasteriser dies of is left to the caller to skip.
const fs = require("fs");
const path = require("path");
const [modules, input, output, size, start] = process.argv.slice(2);
const { Resvg } = require(path.join(modules, "@resvg/resvg-js"));
const side = Number(size);
const out = fs.openSync(output, "a");
for (const line of fs.readFileSync(input, "utf8").split("\n").slice(Number(start))) {
  if (!line) continue;
  const picture = new Resvg(JSON.parse(line), {
    fitTo: { mode: "width", value: side },
    font: { loadSystemFonts: false },
  }).render();
  const blank = Buffer.alloc(side * side * 4);
  const rows = Math.min(side, picture.height);
  const pixels = Buffer.from(picture.pixels);
  for (let y = 0; y < rows; y++) {
    pixels.copy(blank, y * side * 4, y * picture.width * 4, y * picture.width * 4 + Math.min(side, picture.width) * 4);
  }
  fs.writeSync(out, blank);
}
fs.closeSync(out);
