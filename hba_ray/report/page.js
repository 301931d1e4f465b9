"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const packed = JSON.parse(document.getElementById("clips").textContent);
  const rows = [...document.querySelectorAll("#samples > details")];
  const count = document.getElementById("count");
  const addresses = new Map();

  function address(place) {
    if (!addresses.has(place)) {
      const [kind, text] = packed[place];
      const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
      addresses.set(place, URL.createObjectURL(new Blob([bytes], { type: kind })));
    }
    return addresses.get(place);
  }

  function play(row) {
    for (const clip of row.querySelectorAll(".clip")) {
      const player = document.createElement(clip.dataset.tag);
      player.src = address(Number(clip.dataset.clip));
      if (clip.dataset.tag === "img") player.alt = clip.dataset.alt;
      else player.controls = true;
      player.setAttribute("aria-label", clip.dataset.alt);
      player.title = clip.textContent;
      clip.replaceWith(player);
    }
  }

  function isShown(row, wanted) {
    const { dataset, arm, outcome, words } = wanted;
    if (dataset && row.dataset.dataset !== dataset) return false;
    const marks = arm ? [row.dataset.marks[Number(arm)]] : [...row.dataset.marks].filter((mark) => mark !== "–");
    if (outcome === "differ" && new Set(row.dataset.marks.replaceAll("–", "")).size < 2) return false;
    if ((outcome === "0" || outcome === "1") && !marks.includes(outcome)) return false;
    return !words || row.textContent.toLowerCase().includes(words.toLowerCase());
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(form));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !isShown(row, wanted);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  }

  for (const row of rows) row.addEventListener("toggle", () => row.open && play(row));
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
})();
