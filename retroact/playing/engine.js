"use strict";
/* The network in the page: its layers forward, and the gradient of a loss with respect to its input.
   Tensors are Float32Arrays laid out (c, h, w); sums are taken in doubles and rounded once. */
const Engine = (() => {
  /* base64 of little-endian half floats -> Float32Array */
  function halves(text) {
    const raw = atob(text), out = new Float32Array(raw.length / 2);
    for (let i = 0; i < out.length; i++) {
      const bits = raw.charCodeAt(2 * i) | (raw.charCodeAt(2 * i + 1) << 8);
      const exponent = (bits >> 10) & 31, fraction = bits & 1023;
      const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
      out[i] = bits & 32768 ? -size : size;
    }
    return out;
  }

  const count = (shape) => shape.reduce((a, b) => a * b, 1);
  const cut = (numbers, [start, shape]) => numbers.subarray(start, start + count(shape));

  /* the layers with their tensors, as views of all numbers */
  function network(layers, numbers) {
    return layers.map((l) => {
      const made = { ...l };
      for (const name in l.tensors) made[name] = cut(numbers, l.tensors[name]);
      return made;
    });
  }

  /* calls use(input row start, output row start, width, weight index) where a kernel meets an image */
  function eachTap(l, use) {
    const [c, h, w] = l.into, [o, oh, ow] = l.out, shape = l.tensors.weight[1];
    const [, each, kh, kw] = shape, [sy, sx] = l.stride, [py, px] = l.padding, [dy, dx] = l.dilation;
    for (let k = 0; k < o; k++) for (let j = 0; j < each; j++) {
      const plane = (Math.floor(k / (o / l.groups)) * each + j) * h * w;
      for (let u = 0; u < kh; u++) for (let v = 0; v < kw; v++) {
        const tap = ((k * each + j) * kh + u) * kw + v, left = v * dx - px;
        const first = Math.max(0, Math.ceil(-left / sx)), last = Math.min(ow, Math.ceil((w - left) / sx));
        for (let y = 0; y < oh; y++) {
          const row = y * sy + u * dy - py;
          if (row >= 0 && row < h) use(plane + row * w + left, (k * oh + y) * ow, first, last, tap, sx);
        }
      }
    }
  }

  function convolve(l, x) {
    const out = new Float64Array(count(l.out)), area = l.out[1] * l.out[2], weight = l.weight;
    if (l.bias) for (let i = 0; i < out.length; i++) out[i] = l.bias[Math.floor(i / area)];
    eachTap(l, (from, to, first, last, tap, step) => {
      const w = weight[tap];
      for (let i = first; i < last; i++) out[to + i] += w * x[from + i * step];
    });
    return Float32Array.from(out);
  }

  function convolveBack(l, g) {
    const back = new Float64Array(count(l.into)), weight = l.weight;
    eachTap(l, (to, from, first, last, tap, step) => {
      const w = weight[tap];
      for (let i = first; i < last; i++) back[to + i * step] += w * g[from + i];
    });
    return Float32Array.from(back);
  }

  /* calls use(output index, input indices inside the image) for every window of a pooling */
  function eachWindow(l, use) {
    const [c, h, w] = l.into, [, oh, ow] = l.out, [kh, kw] = l.size, [sy, sx] = l.stride, [py, px] = l.padding;
    for (let k = 0; k < c; k++) for (let y = 0; y < oh; y++) for (let x = 0; x < ow; x++) {
      const inside = [];
      for (let u = y * sy - py; u < y * sy - py + kh; u++) for (let v = x * sx - px; v < x * sx - px + kw; v++)
        if (u >= 0 && u < h && v >= 0 && v < w) inside.push((k * h + u) * w + v);
      use((k * oh + y) * ow + x, inside);
    }
  }

  const divisor = (l, inside) => (l.padded ? l.size[0] * l.size[1] : inside.length);
  const largest = (x, inside) => inside.reduce((best, i) => (x[i] > x[best] ? i : best), inside[0]);

  /* z -> min(alpha z 1[z > kappa], cap): the numbers at a site under the chosen activation */
  function rampAt(l, how) {
    const cap = (c) => (c === null ? Infinity : c);
    if (how.kind === "jump") return { alpha: 1, kappa: how.kappa, cap: cap(l.own_cap), shift: null };
    if (how.kind === "slope") return { alpha: how.alpha, kappa: 0, cap: cap(l.own_cap), shift: null };
    return { alpha: l.alpha, kappa: l.kappa, cap: cap(l.cap), shift: l.shift || null };
  }

  /* the derivative at z: autograd's, or, with a kernel of sharpness beta = sharpness / kappa at the
     jump, that of z sigma(beta (z - kappa)), which sees the jump */
  function slope(z, r, sharpness) {
    if (sharpness && r.kappa > 0) {
      const beta = sharpness / r.kappa, s = 1 / (1 + Math.exp(-beta * (z - r.kappa)));
      return r.alpha * z < r.cap ? r.alpha * (s + beta * z * s * (1 - s)) : 0;
    }
    return z > r.kappa && r.alpha * z < r.cap ? r.alpha : 0;
  }

  const channel = (l, list) => (list.length === 1 ? () => 0 : ((area) => (i) => Math.floor(i / area))(count(l.into) / l.into[0]));

  const forward = {
    affine: (l, x) => { const a = channel(l, l.scale), b = channel(l, l.shift); return x.map((v, i) => v * l.scale[a(i)] + l.shift[b(i)]); },
    conv: convolve,
    linear(l, x) {
      const n = x.length, out = new Float32Array(count(l.out));
      for (let k = 0; k < out.length; k++) {
        let sum = l.bias ? l.bias[k] : 0;
        for (let i = 0; i < n; i++) sum += l.weight[k * n + i] * x[i];
        out[k] = sum;
      }
      return out;
    },
    maxpool(l, x) { const out = new Float32Array(count(l.out)); eachWindow(l, (o, inside) => { out[o] = x[largest(x, inside)]; }); return out; },
    avgpool(l, x) {
      const out = new Float32Array(count(l.out));
      eachWindow(l, (o, inside) => { let sum = 0; for (const i of inside) sum += x[i]; out[o] = sum / divisor(l, inside); });
      return out;
    },
    act(l, x, how) {
      const r = rampAt(l, how);
      return shifted(l, x, r).map((z) => (z > r.kappa ? Math.min(r.alpha * z, r.cap) : z !== z ? z : 0));
    },
  };

  const backward = {
    affine: (l, x, g) => { const a = channel(l, l.scale); return g.map((v, i) => v * l.scale[a(i)]); },
    conv: (l, x, g) => convolveBack(l, g),
    linear(l, x, g) {
      const n = x.length, back = new Float64Array(n);
      for (let k = 0; k < g.length; k++) if (g[k] !== 0) for (let i = 0; i < n; i++) back[i] += l.weight[k * n + i] * g[k];
      return Float32Array.from(back);
    },
    maxpool(l, x, g) { const back = new Float32Array(x.length); eachWindow(l, (o, inside) => { back[largest(x, inside)] += g[o]; }); return back; },
    avgpool(l, x, g) { const back = new Float32Array(x.length); eachWindow(l, (o, inside) => { for (const i of inside) back[i] += g[o] / divisor(l, inside); }); return back; },
    act(l, x, g, how) { const r = rampAt(l, how), z = shifted(l, x, r); return g.map((v, i) => v * slope(z[i], r, how.sharpness)); },
  };

  function shifted(l, x, r) {
    if (!r.shift) return x;
    const c = channel(l, r.shift);
    return x.map((v, i) => v + r.shift[c(i)]);
  }

  const logits = (net, x, how) => net.reduce((v, l) => forward[l.op](l, v, how), x);
  const argmax = (z) => z.reduce((best, v, i) => (v > z[best] ? i : best), 0);

  /* as torch has it: in single precision, so that p - 1 is exactly 0 where p rounds to 1 */
  function softmax(z) {
    const top = Math.max(...z), powers = Float32Array.from(z, (v) => Math.exp(v - top));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((p) => p / sum);
  }

  const losses = {
    cross_entropy(z, y) {
      const top = Math.max(...z), value = Math.log(z.reduce((a, v) => a + Math.exp(v - top), 0)) + top - z[y];
      return [value, softmax(z).map((p, i) => p - (i === y))];
    },
    margin(z, y) {
      let best = y === 0 ? 1 : 0;
      z.forEach((v, i) => { if (i !== y && v > z[best]) best = i; });
      return [z[best] - z[y], z.map((_, i) => (i === best) - (i === y))];
    },
  };

  /* {logits, loss, gradient} of a loss of the label y at the input x */
  function gradient(net, x, how, loss, y) {
    const inputs = [x];
    for (const l of net) inputs.push(forward[l.op](l, inputs[inputs.length - 1], how));
    const z = inputs.pop(), [value, start] = losses[loss](z, y);
    const back = net.reduceRight((g, l, i) => backward[l.op](l, inputs[i], g, how), start);
    return { logits: z, loss: value, gradient: back };
  }

  /* numbers in [0, 1) that are the same for the same seed (mulberry32) */
  function random(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /* PGD within eps (L-infinity) and the box, a step at a time; `path` has one entry for each point */
  class Pgd {
    constructor(net, clean, y, how, { eps, loss, steps = 40, step, seed = 0, box = [0, 1] }) {
      Object.assign(this, { net, clean, y, how, eps, loss, steps, length: step * eps, box, path: [], fooled: null });
      const draw = random(seed + 1);
      this.x = this.inside(clean.map((v) => v + eps * (2 * draw() - 1)));
    }
    inside(x) {
      const [low, high] = this.box;
      return x.map((v, i) => Math.min(Math.max(v, this.clean[i] - this.eps, low), this.clean[i] + this.eps, high));
    }
    get done() { return this.path.length > this.steps; }
    advance() {
      const { logits: z, loss, gradient: g } = gradient(this.net, this.x, this.how, this.loss, this.y);
      const decided = argmax(z);
      this.path.push({ loss, margin: losses.margin(z, this.y)[0], decided, dead: g.every((v) => v === 0) });
      if (this.fooled === null && decided !== this.y) this.fooled = { step: this.path.length - 1, x: this.x, logits: z };
      this.last = { x: this.x, logits: z };
      if (!this.done) this.x = this.inside(this.x.map((v, i) => v + this.length * Math.sign(g[i])));
    }
    get shown() { return this.fooled || this.last; }
  }

  return { halves, network, logits, gradient, argmax, softmax, Pgd };
})();
