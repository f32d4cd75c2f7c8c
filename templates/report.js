"use strict";
// Sorting: a button in every heading; numbers by their exact value, what was not measured always last.
document.querySelectorAll("#results thead button").forEach(function (button) {
  button.addEventListener("click", function () {
    var heading = button.closest("th");
    var body = document.querySelector("#results tbody");
    var rising = heading.getAttribute("aria-sort") !== "ascending";
    var index = heading.cellIndex;
    document.querySelectorAll("#results thead th").forEach(function (other) {
      other.removeAttribute("aria-sort");
    });
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    Array.from(body.rows)
      .map(function (row) {
        var text = row.cells[index].dataset.value;
        return { row: row, text: text, number: Number(text) };
      })
      .sort(function (one, two) {
        if (one.text === "" || two.text === "") return (one.text === "") - (two.text === "");
        var order = isNaN(one.number) || isNaN(two.number) ? one.text.localeCompare(two.text) : one.number - two.number;
        return rising ? order : -order;
      })
      .forEach(function (entry) {
        body.appendChild(entry.row);
      });
  });
});
// A choice of variant shows one group and hides the others; without a script all of them are shown.
document.querySelectorAll("select[data-shows]").forEach(function (select) {
  function show() {
    document.querySelectorAll('[data-group="' + select.dataset.shows + '"]').forEach(function (part) {
      part.hidden = part.dataset.item !== select.value;
    });
  }
  select.closest("p").hidden = false;
  document.querySelectorAll('[data-group="' + select.dataset.shows + '"] > .pickname').forEach(function (name) {
    name.hidden = true;
  });
  select.addEventListener("change", show);
  show();
});
