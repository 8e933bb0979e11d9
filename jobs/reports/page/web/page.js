"use strict";

/* Lists, search, players and keys. Everything that is shown is in the HTML already; this shows, hides
   and orders it, and builds no HTML of its own. */

const Page = (() => {
  const SEEK_S = 2;
  const lists = JSON.parse(document.getElementById("lists").textContent);
  const all = document.getElementById("all");
  const clips = [...all.querySelectorAll(".clip")];
  const byNumber = new Map(clips.map((clip) => [Number(clip.dataset.clip), clip]));
  const find = document.getElementById("find");
  const status = document.getElementById("status");
  const buttons = [...document.querySelectorAll(".list")];
  const texts = new Map(clips.map((clip) => [clip, textOf(clip)]));
  let list = "all";
  let current = null;

  // Lists and search

  function textOf(clip) {
    // A reference is cut up by its edits.
    const references = [...clip.querySelectorAll("[data-reference]")].map((text) => text.dataset.reference);
    return [clip.textContent, ...references].join("\n").toLocaleLowerCase();
  }

  function show() {
    const wanted = list === "all" ? clips : lists[Number(list)].clips.map((n) => byNumber.get(n));
    const query = find.value.trim().toLocaleLowerCase();
    const matching = wanted.filter((clip) => texts.get(clip).includes(query));
    const shown = new Set(matching);
    for (const clip of clips) clip.hidden = !shown.has(clip);
    all.append(...matching);
    const of = list === "all" ? "" : ` of ${lists[Number(list)].total.toLocaleString("en")} in the table`;
    const found = query ? `, of ${wanted.length.toLocaleString("en")} here` : "";
    const clipsOf = matching.length === 1 ? "clip" : "clips";
    status.textContent = `${matching.length.toLocaleString("en")} ${clipsOf}${found}${of}`;
    if (current && current.hidden) select(null);
  }

  function choose(name) {
    list = name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.list === name));
    show();
  }

  function otherList(step) {
    const at = buttons.findIndex((button) => button.dataset.list === list);
    const next = buttons[(at + step + buttons.length) % buttons.length];
    choose(next.dataset.list);
    next.scrollIntoView({ block: "nearest" });
  }

  // The clip that the keys act on

  function visible() {
    return [...all.children].filter((clip) => !clip.hidden);
  }

  function select(clip) {
    if (current && current !== clip) {
      current.classList.remove("current");
      pause(current);
    }
    current = clip;
    if (clip) clip.classList.add("current");
  }

  function step(by) {
    const shown = visible();
    if (!shown.length) return;
    const playing = current && isPlaying(current);
    const at = current ? shown.indexOf(current) + by : 0;
    const next = shown[Math.min(Math.max(at, 0), shown.length - 1)];
    select(next);
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
    if (playing) play(next);
  }

  // Sound

  function audioOf(clip) {
    return clip.querySelector("audio");
  }

  function isPlaying(clip) {
    const audio = audioOf(clip);
    return Boolean(audio) && !audio.paused;
  }

  function pause(clip) {
    const audio = audioOf(clip);
    if (audio) audio.pause();
  }

  function play(clip) {
    select(clip);
    const audio = audioOf(clip);
    if (audio) audio.play().catch((error) => { if (error.name !== "AbortError") fail(clip); });
  }

  function toggle(clip) {
    if (isPlaying(clip)) pause(clip);
    else play(clip);
  }

  function seek(clip, seconds) {
    const audio = audioOf(clip);
    if (!audio) return;
    const most = Number(clip.querySelector(".sound").dataset.seconds);
    const at = Math.min(Math.max(seconds, 0), most);
    if (audio.readyState > 0) audio.currentTime = at;
    else {
      audio.addEventListener("loadedmetadata", () => { audio.currentTime = at; }, { once: true });
      audio.load();
    }
    place(clip, at);
  }

  function place(clip, seconds) {
    const sound = clip.querySelector(".sound");
    const share = Math.min(seconds / Number(sound.dataset.seconds), 1);
    sound.style.setProperty("--at", `${100 * share}%`);
    sound.setAttribute("aria-valuenow", seconds.toFixed(2));
    sound.setAttribute("aria-valuetext", `${seconds.toFixed(1)} s`);
    sound.querySelector(".time").textContent = `${seconds.toFixed(1)} s`;
    for (const piece of clip.querySelectorAll(".piece")) {
      const { start, end } = piece.dataset;
      piece.classList.toggle("now", seconds >= Number(start) && seconds < Number(end));
    }
  }

  function fail(clip) {
    if (clip.querySelector(".unplayable")) return;
    const note = document.createElement("p");
    note.className = "note bad unplayable";
    note.textContent = "This browser does not play the clip (Opus in Ogg).";
    clip.querySelector(".sound").after(note);
  }

  function follow(clip) {
    const audio = audioOf(clip);
    const button = clip.querySelector(".play");
    const name = button.getAttribute("aria-label").replace(/^Play /, "");
    let frame = 0;
    const move = () => {
      place(clip, audio.currentTime);
      frame = audio.paused ? 0 : requestAnimationFrame(move);
    };
    audio.addEventListener("play", () => {
      clip.classList.add("playing");
      button.setAttribute("aria-label", `Pause ${name}`);
      cancelAnimationFrame(frame);
      move();
    });
    audio.addEventListener("pause", () => {
      clip.classList.remove("playing");
      button.setAttribute("aria-label", `Play ${name}`);
    });
    audio.addEventListener("seeked", () => place(clip, audio.currentTime));
    audio.addEventListener("error", () => fail(clip));
  }

  // Mouse and keys

  function click(event) {
    const clip = event.target.closest(".clip");
    if (!clip) return;
    const piece = event.target.closest(".piece");
    const sound = event.target.closest(".sound");
    if (event.target.closest(".play")) toggle(clip);
    else if (piece) {
      seek(clip, Number(piece.dataset.start));
      play(clip);
    } else if (sound) {
      const { left, width } = sound.getBoundingClientRect();
      seek(clip, ((event.clientX - left) / width) * Number(sound.dataset.seconds));
      play(clip);
    } else select(clip);
  }

  const KEYS = {
    " ": () => { if (current) toggle(current); else step(0); },
    j: () => step(1),
    k: () => step(-1),
    n: () => step(1),
    p: () => step(-1),
    ArrowLeft: () => nudge(-SEEK_S),
    ArrowRight: () => nudge(SEEK_S),
    "/": () => find.focus(),
    "[": () => otherList(-1),
    "]": () => otherList(1),
  };

  function nudge(seconds) {
    const audio = current && audioOf(current);
    if (audio) seek(current, audio.currentTime + seconds);
  }

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === find) {
      if (event.key === "Escape") { find.value = ""; show(); find.blur(); }
      if (event.key === "Enter") { find.blur(); step(1); }
      return;
    }
    const onButton = event.target.closest("button, a, summary");
    if (onButton && (event.key === " " || event.key === "Enter")) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  function start() {
    for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.list));
    find.addEventListener("input", show);
    all.addEventListener("click", click);
    all.addEventListener("focusin", (event) => {
      const clip = event.target.closest(".clip");
      if (clip && clip !== current && event.target.matches(".sound, .clip")) select(clip);
    });
    document.addEventListener("keydown", press);
    for (const clip of clips) if (audioOf(clip)) follow(clip);
    show();
  }

  return { start };
})();

Page.start();
Charts.start();
