// 24 kHz 16-bit PCM and base64, the form in which sound travels.

export const RATE = 24000;

/** Float samples in [-1, 1] -> base64 of 16-bit little-endian samples. */
export function encode(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, place) => {
    view.setInt16(2 * place, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true);
  });
  return btoa(Array.from(new Uint8Array(view.buffer), (byte) => String.fromCharCode(byte)).join(""));
}

/** base64 of 16-bit little-endian samples -> float samples. */
export function decode(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length >> 1 }, (_, place) => view.getInt16(2 * place, true) / 32768);
}
