// A letter's text and the claims marked in it: offsets that follow edits, and sentences that can be taken out.

// The place in JavaScript's own units of the server's `points` (whole Unicode characters).
export function place(text, points) {
  let at = 0;
  for (let left = points; left > 0 && at < text.length; left--) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

// A claim as the page keeps it: start and end in the text, or null where the server's offsets do not lie in it.
export function marked(text, claim) {
  const start = place(text, claim.start);
  const end = place(text, claim.end);
  if (start >= end || end > text.length) return null;
  return { start, end, said: text.slice(start, end), kind: claim.kind, verdict: claim.verdict, why: claim.why, field: claim.field };
}

// The claims after the text was changed from `before` to `after`; one whose words were changed is no longer there.
export function shifted(claims, before, after) {
  if (before === after) return claims;
  let same = 0;
  const most = Math.min(before.length, after.length);
  while (same < most && before[same] === after[same]) same += 1;
  let tail = 0;
  while (tail < most - same && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
  const changed = before.length - tail;
  const by = after.length - before.length;
  return claims.flatMap((claim) => {
    if (claim.end <= same) return [claim];
    if (claim.start >= changed) return [{ ...claim, start: claim.start + by, end: claim.end + by }];
    return [];
  });
}

// Start and end of the whole sentence that holds start to end, with the blank that would be left over.
export function sentence(text, start, end) {
  const line = text.lastIndexOf("\n", start - 1) + 1;
  const stop = text.indexOf("\n", end) < 0 ? text.length : text.indexOf("\n", end);
  const parts = [...new Intl.Segmenter(undefined, { granularity: "sentence" }).segment(text.slice(line, stop))];
  const inside = joined(parts).filter((part) => line + part.end > start && line + part.start < end);
  let [from, to] = [line + (inside[0]?.start ?? 0), line + (inside.at(-1)?.end ?? 0)];
  const alone = !text.slice(line, from).trim() && !text.slice(to, stop).trim();
  if (alone) [from, to] = [line, stop];
  if (alone && text[to] === "\n") to += 1;
  else if (alone && from > 0) from -= 1;
  while (alone && from > 0 && text.slice(from - 2, from) === "\n\n" && text[to] === "\n") to += 1; // no second empty line
  while (!alone && to === stop && from > line && text[from - 1] === " ") from -= 1;
  return [from, to];
}

// An abbreviation's full stop ends no sentence ("e.g. ", "Dr. ", "No. 5").
function joined(parts) {
  const found = [];
  for (const part of parts) {
    const last = found.at(-1);
    if (last && /(?:\b(?:e\.g|i\.e|Dr|Mr|Mrs|Ms|Prof|St|No|Inc|Ltd|Co|z\.B|bzw|Nr|approx|vs)\.|\b\p{Lu}\.)\s*$/u.test(last.text)) {
      last.text += part.segment;
      last.end += part.segment.length;
    } else {
      found.push({ start: part.index, end: part.index + part.segment.length, text: part.segment });
    }
  }
  return found;
}
