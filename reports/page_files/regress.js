// The page of a comparison: its buttons set the gallery's filter.
"use strict";

(function () {
  const gallery = document.getElementById("gallery-app");
  const form = gallery && gallery.querySelector("form");
  if (!form) return;
  for (const button of document.querySelectorAll(".show-flips")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      form.elements.kind.value = "";
      form.elements.verdict.value = button.dataset.verdict;
      form.elements.verdict.dispatchEvent(new Event("change"));
      document.getElementById("gallery").scrollIntoView();
    });
  }
})();
