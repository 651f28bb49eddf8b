// Pictures and files from memory: a plain link or address of the server would not send the token.

/** A picture as a data: URL. An SVG opened in its own tab could run scripts, but browsers do not open data: URLs as pages. */
export function dataUrl(bytes: ArrayBuffer | Uint8Array<ArrayBuffer>, type: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error ?? new Error("the picture cannot be read"));
    reader.readAsDataURL(new Blob([bytes], { type }));
  });
}
