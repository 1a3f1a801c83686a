// Shows the values of the mark that is nearest to the pointer, a finger's tap or the focus. The
// arrow keys go from mark to mark; each chart is one stop of the Tab key.
(() => {
  const REACH = 28; // pixels around a mark
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true"); // The title of a mark is what is read out.
  document.body.append(tip);
  let shown = null;

  function hide() {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.classList.remove("on");
  }

  function show(mark) {
    if (mark === shown) return;
    hide();
    shown = mark;
    mark.classList.add("on");
    tip.textContent = mark.querySelector("title").textContent;
    tip.classList.add("on");
    const at = mark.getBoundingClientRect();
    const left = at.left + at.width / 2 - tip.offsetWidth / 2;
    const widest = document.documentElement.clientWidth - tip.offsetWidth - 4;
    const above = at.top - tip.offsetHeight - 8;
    tip.style.left = `${window.scrollX + Math.max(4, Math.min(left, widest))}px`;
    tip.style.top = `${window.scrollY + (above > 4 ? above : Math.min(at.bottom, at.top + 40) + 8)}px`;
  }

  function distance(mark, x, y) {
    const box = mark.getBoundingClientRect();
    return Math.hypot(
      Math.max(box.left - x, 0, x - box.right),
      Math.max(box.top - y, 0, y - box.bottom),
    );
  }

  for (const chart of document.querySelectorAll("svg")) {
    const marks = [...chart.querySelectorAll(".mark, .at")];
    if (!marks.length) continue;
    chart.classList.add("live");
    marks.forEach((mark, i) => {
      mark.setAttribute("role", "img");
      mark.setAttribute("tabindex", i ? -1 : 0);
    });

    const point = (event) => {
      let nearest = null, least = REACH;
      for (const mark of marks) {
        const far = distance(mark, event.clientX, event.clientY);
        if (far < least) [nearest, least] = [mark, far];
      }
      if (nearest) show(nearest);
      else hide();
    };
    chart.addEventListener("pointermove", point);
    chart.addEventListener("pointerdown", point);
    chart.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") hide(); // What was tapped stays.
    });
    chart.addEventListener("focusin", (event) => show(event.target));
    chart.addEventListener("focusout", hide);
    chart.addEventListener("keydown", (event) => {
      const here = marks.indexOf(document.activeElement);
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -here, End: marks.length - 1 - here };
      if (!(event.key in step)) return;
      event.preventDefault();
      const next = marks[Math.max(0, Math.min(here + step[event.key], marks.length - 1))];
      marks[here]?.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest("svg")) hide();
  });
})();
