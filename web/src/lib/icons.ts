// Icons as SVG paths on a grid of 24 by 24, drawn as lines.

export const icons = {
  home: "M4 11l8-7 8 7M6 9.5V20h12V9.5M10 20v-6h4v6",
  flask: "M9 3h6M10 3v6l-5.5 9.5A1.7 1.7 0 0 0 6 21h12a1.7 1.7 0 0 0 1.5-2.5L14 9V3M7.5 15h9",
  box: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  rocket: "M5 15c-1.5 1-2 5-2 5s4-.5 5-2M9 15l-3-3c2-5.5 6-9 14-9 0 8-3.5 12-9 14zM6 12H3l3-4h3.5M12 18v3l4-3v-3.5M14.5 8.5h1v1h-1z",
  layers: "M12 4l9 4.500-9 4.500-9-4.500zM3 12.500l9 4.500 9-4.500M3 16.500l9 4.500 9-4.500",
  chip: "M6 6h12v12H6zM10 10h4v4h-4zM9 2v4M15 2v4M9 18v4M15 18v4M2 9h4M2 15h4M18 9h4M18 15h4",
  nodes: "M9 3h6v5H9zM3 16h6v5H3zM15 16h6v5h-6zM12 8v4M6 16v-4h12v4",
  book: "M12 6c-2-1.5-5-2-8-2v14c3 0 6 .5 8 2 2-1.5 5-2 8-2V4c-3 0-6 .5-8 2zM12 6v14",
  run: "M3 17l5-6 4 3 5-8 4 5M3 21h18",
  search: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13zM15.5 15.5L21 21",
  menu: "M4 6h16M4 12h16M4 18h16",
  close: "M5 5l14 14M19 5L5 19",
  collapse: "M4 4h16v16H4zM9 4v16M16 9l-3 3 3 3",
  expand: "M4 4h16v16H4zM9 4v16M13 9l3 3-3 3",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  leave: "M10 4H5v16h5M14 8l4 4-4 4M8 12h10",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  reset: "M4 12a8 8 0 1 0 2.5-5.800M4 4v5h5",
  table: "M4 5h16v14H4zM4 10h16M4 14.5h16M10 5v14",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 8.5h1v1h-1z",
  file: "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M4 20h16",
  all: "M4 18l3-10 3 7 3-11 3 13 4-6",
} as const;

export type IconName = keyof typeof icons;
