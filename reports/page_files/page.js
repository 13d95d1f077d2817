// The page without the gallery: light or dark, where one is in it, and what is unfolded on paper.
"use strict";

(function () {
  const page = document.documentElement;
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function shown() {
    return page.dataset.theme || (dark.matches ? "dark" : "light");
  }

  function label() {
    const other = shown() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "◐ Dark" : "◑ Light";
    button.setAttribute("aria-label", "Show the page in " + other + " colours");
  }

  // A page opened from a file may be denied storage; the choice then lasts as long as the page.
  function remembered(value) {
    try {
      if (value) localStorage.setItem("mr1-theme", value);
      return localStorage.getItem("mr1-theme");
    } catch (error) {
      if (error instanceof DOMException) return null;
      throw error;
    }
  }

  const before = remembered();
  if (before === "dark" || before === "light") page.dataset.theme = before;
  button.hidden = false;
  button.addEventListener("click", () => {
    page.dataset.theme = shown() === "dark" ? "light" : "dark";
    remembered(page.dataset.theme);
    label();
  });
  dark.addEventListener("change", label);
  label();

  // A link to a run opens the fold it lies in.
  function unfold() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    if (target.matches("details")) target.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", unfold);
  unfold();

  // On paper the seeds of table 1 are unfolded; the long lists stay folded and are in report.json and tables/.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = Array.from(document.querySelectorAll("#table-1 td details:not([open]), #gains details:not([open])"));
    for (const fold of folded) fold.open = true;
  });
  window.addEventListener("afterprint", () => { for (const fold of folded) fold.open = false; });

  const links = new Map(Array.from(document.querySelectorAll(".contents a")).map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(entry.target.id);
      if (!link) continue;
      link.setAttribute("aria-current", "true");
      const bar = link.closest("nav");
      if (bar.scrollWidth > bar.clientWidth) bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 3 });
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const section of document.querySelectorAll("main > section[id]")) watcher.observe(section);
})();
