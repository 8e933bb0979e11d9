"use strict";

/* Draws each `.chart` with uPlot from the JSON that the page carries, in the colours of its style, and
   again when the width or the colour scheme changes. */

const Charts = (() => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  const HEIGHT = 190;
  const WHOLE = [1, 2, 5].flatMap((n) => [...Array(12).keys()].map((power) => n * 10 ** power)).sort((a, b) => a - b);

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function short(value) {
    return value.toLocaleString("en", { maximumSignificantDigits: 3, notation: "compact" });
  }

  function axis(more) {
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    return {
      stroke: colour("--quiet"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font,
      gap: 4,
      ...more,
    };
  }

  function options(place, more) {
    const said = place.closest("figure").querySelector("output");
    return {
      width: Math.max(place.clientWidth, 200),
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      padding: [8, 10, 0, 0],
      hooks: { setCursor: [(plot) => { said.textContent = more.tell(plot.cursor.idx); }] },
      ...more.options,
    };
  }

  function histogram(place, { edges, counts, open }) {
    const middles = counts.map((_, n) => (edges[n] + edges[n + 1]) / 2);
    const step = edges[1] - edges[0];
    const digits = Math.max(0, 2 - Math.floor(Math.log10(step * 10)));
    const tell = (n) => {
      if (n == null) return "";
      const above = open && n === counts.length - 1;
      const to = above ? " and above" : `–${edges[n + 1].toFixed(digits)}`;
      return `${edges[n].toFixed(digits)}${to}: ${counts[n].toLocaleString("en")}`;
    };
    return new uPlot(
      options(place, {
        tell,
        options: {
          scales: {
            x: { time: false, range: [edges[0], edges[edges.length - 1]] },
            y: { range: (plot, low, high) => [0, (high || 1) * 1.05] },
          },
          axes: [
            axis({ size: 26, grid: { show: false }, values: (plot, ticks) => ticks.map(short) }),
            axis({ size: 44, incrs: WHOLE, values: (plot, ticks) => ticks.map(short) }),
          ],
          series: [
            {},
            {
              fill: colour("--accent"),
              width: 0,
              points: { show: false },
              paths: uPlot.paths.bars({ size: [0.86, Infinity] }),
            },
          ],
        },
      }),
      [middles, counts],
      place,
    );
  }

  function calibration(place, bins) {
    const tell = (n) => {
      if (n == null || !bins[n]) return "";
      const { score, right, clips } = bins[n];
      return `score ${score.toFixed(2)}: ${(100 * right).toFixed(0)} % right, ${clips.toLocaleString("en")} clips`;
    };
    const scores = bins.map((bin) => bin.score);
    const ideal = (plot) => {
      const context = plot.ctx;
      context.save();
      context.strokeStyle = colour("--quiet");
      context.setLineDash([4, 4]);
      context.beginPath();
      context.moveTo(plot.valToPos(0, "x", true), plot.valToPos(0, "y", true));
      context.lineTo(plot.valToPos(1, "x", true), plot.valToPos(1, "y", true));
      context.stroke();
      context.restore();
    };
    const chosen = options(place, {
      tell,
      options: {
        scales: { x: { time: false, range: [0, 1] }, y: { range: [0, 1.02] } },
        axes: [axis({ size: 26, grid: { show: false } }), axis({ size: 44 })],
        series: [
          {},
          {
            stroke: colour("--accent"),
            width: 2,
            points: { show: true, size: 7, fill: colour("--accent") },
          },
        ],
      },
    });
    chosen.hooks.drawClear = [ideal];
    return new uPlot(chosen, [scores, bins.map((bin) => bin.right)], place);
  }

  function draw(place) {
    place.replaceChildren();
    const own = data[place.dataset.chart];
    return Array.isArray(own) ? calibration(place, own) : histogram(place, own);
  }

  function start() {
    const plots = new Map();
    const places = document.querySelectorAll(".chart");
    places.forEach((place) => plots.set(place, draw(place)));
    const watch = new ResizeObserver((changes) => {
      for (const { target } of changes) {
        const width = Math.max(target.clientWidth, 200);
        if (plots.get(target).width !== width) plots.get(target).setSize({ width, height: HEIGHT });
      }
    });
    places.forEach((place) => watch.observe(place));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      places.forEach((place) => plots.set(place, draw(place)));
    });
  }

  return { start };
})();
