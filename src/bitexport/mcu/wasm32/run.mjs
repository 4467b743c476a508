// Runs an exported network on images: node run.mjs PROGRAM NAME INPUT_SIZE OUTPUT_SIZE INPUT_OFFSET
import fs from 'node:fs';

const [program, name, inputSize, outputSize, offset] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(fs.readFileSync(program), {});
const { memory, __heap_base, ...network } = instance.exports;
const input = network[`${name}_arena`].value + Number(offset);
const output = (__heap_base.value + 7) & ~7;
const images = fs.readFileSync('images');
const results = [];
for (let at = 0; at < images.length; at += Number(inputSize)) {
  const image = images.subarray(at, at + Number(inputSize));
  new Uint8Array(memory.buffer).set(image, input);
  const label = network[`${name}_predict`](input);
  new Uint8Array(memory.buffer).set(image, input);
  network[`${name}_run`](input, output);
  results.push(...new Int32Array(memory.buffer, output, Number(outputSize)), label, 0, 0);
}
fs.writeFileSync('results', new Uint8Array(Int32Array.from([...results, 0]).buffer));
