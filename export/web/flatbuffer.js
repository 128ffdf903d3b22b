// A TFLite file with some of its signatures. An accelerator is tried on every signature of a file, and can fail on one that it is
// not meant for; and each takes memory.
//
// A file is a FlatBuffer: tables, whose fields are found by way of a vtable, and vectors, a length and then offsets, each relative
// to where it stands (flatbuffers.dev/internals). Field numbers are those of TFLite's schema.fbs.

const MODEL = { subgraphs: 2, signatures: 7 };
const SIGNATURE = { key: 2, subgraph: 4 };

/**
 * A copy of a TFLite file in which only the signatures of these names are left, with their subgraphs, which must call no others.
 *
 * @param {Uint8Array} file
 * @param {string[]} names
 */
export function withSignatures(file, names) {
  const copy = file.slice();
  const view = new DataView(copy.buffer);
  const follow = (at) => at + view.getUint32(at, true);
  const model = follow(0);
  const subgraphs = follow(field(view, model, MODEL.subgraphs));
  const signatures = follow(field(view, model, MODEL.signatures));
  const kept = offsets(view, signatures).filter((at) => names.includes(text(view, follow(field(view, at, SIGNATURE.key)))));
  // A field that is not there is 0, the first subgraph; as all keep their order, that one stays the first.
  const place = (signature) => field(view, signature, SIGNATURE.subgraph);
  const numbers = kept.map((signature) => (place(signature) ? view.getUint32(place(signature), true) : 0));
  const order = [...new Set(numbers)].sort((one, other) => one - other);
  kept.forEach((signature, index) => {
    if (place(signature)) view.setUint32(place(signature), order.indexOf(numbers[index]), true);
  });
  const all = offsets(view, subgraphs);
  replace(view, subgraphs, order.map((number) => all[number]));
  replace(view, signatures, kept);
  return copy;
}

/** Where a field of a table stands; 0 where it is left out. */
function field(view, table, number) {
  const vtable = table - view.getInt32(table, true);
  const entry = 4 + 2 * number;
  const offset = entry < view.getUint16(vtable, true) ? view.getUint16(vtable + entry, true) : 0;
  return offset && table + offset;
}

/** Where the tables of a vector stand. */
function offsets(view, vector) {
  return Array.from({ length: view.getUint32(vector, true) }, (_, index) => {
    const at = vector + 4 + 4 * index;
    return at + view.getUint32(at, true);
  });
}

/** Make a vector shorter. */
function replace(view, vector, tables) {
  view.setUint32(vector, tables.length, true);
  tables.forEach((table, index) => {
    const at = vector + 4 + 4 * index;
    view.setUint32(at, table - at, true);
  });
}

function text(view, string) {
  return new TextDecoder().decode(new Uint8Array(view.buffer, string + 4, view.getUint32(string, true)));
}
