//! Pickles of plain values, written and read without the pickler.
//!
//! Most arguments and results are a number, a short text, or a few of these in a tuple. For them the
//! pickler's own start and end take longer than what lies between. What is written here is a pickle
//! (protocol 5, CPython's `Lib/pickletools.py`), and what is read may be anybody's; whatever is
//! not plain is left to `pickle`: other types and subclasses, much of anything, and objects that are
//! in a value twice, which must be one object on the other side, too.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyList, PyString, PyTuple};

mod op {
    pub const PROTO: u8 = 0x80;
    pub const FRAME: u8 = 0x95;
    pub const MEMOIZE: u8 = 0x94;
    pub const STOP: u8 = b'.';
    pub const NONE: u8 = b'N';
    pub const TRUE: u8 = 0x88;
    pub const FALSE: u8 = 0x89;
    pub const INT_1: u8 = b'K';
    pub const INT_2: u8 = b'M';
    pub const INT_4: u8 = b'J';
    pub const LONG: u8 = 0x8a;
    pub const FLOAT: u8 = b'G';
    pub const TEXT: u8 = 0x8c;
    pub const MARK: u8 = b'(';
    pub const TUPLE_0: u8 = b')';
    pub const TUPLE_1: u8 = 0x85;
    pub const TUPLE_2: u8 = 0x86;
    pub const TUPLE_3: u8 = 0x87;
    pub const TUPLE: u8 = b't';
    pub const LIST: u8 = b']';
    pub const APPEND: u8 = b'a';
    pub const APPENDS: u8 = b'e';
}

const PROTOCOL: u8 = 5;
/// With more values than this the pickler is as quick, ...
const FEW: usize = 16;
/// ... and so is the unpickler with more bytes.
const BRIEF: usize = 512;
/// As long as its length is one byte.
const SHORT: usize = 255;

/// The pickle of a value, if that is plain.
pub fn write(object: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let mut writer = Writer { out: Vec::with_capacity(32), left: FEW, seen: [0; FEW], known: 0 };
    writer.out.extend([op::PROTO, PROTOCOL]);
    writer.value(object)?;
    writer.out.push(op::STOP);
    Some(writer.out)
}

struct Writer {
    out: Vec<u8>,
    /// So many more values may follow.
    left: usize,
    /// The addresses of the objects that have an identity, so far.
    seen: [usize; FEW],
    known: usize,
}

impl Writer {
    fn value(&mut self, object: &Bound<'_, PyAny>) -> Option<()> {
        self.left = self.left.checked_sub(1)?;
        if let Ok(int) = object.cast_exact::<PyInt>() {
            self.int(int.extract().ok()?);
        } else if let Ok(float) = object.cast_exact::<PyFloat>() {
            self.out.push(op::FLOAT);
            self.out.extend(float.value().to_be_bytes());
        } else if object.is_none() {
            self.out.push(op::NONE);
        } else if let Ok(flag) = object.cast_exact::<PyBool>() {
            self.out.push(if flag.is_true() { op::TRUE } else { op::FALSE });
        } else if let Ok(text) = object.cast_exact::<PyString>() {
            self.meet(object)?;
            // The length first: of a long one, no copy is made for this.
            let text = (text.len().ok()? <= SHORT).then(|| text.to_str().ok()).flatten()?;
            self.out.extend([op::TEXT, u8::try_from(text.len()).ok()?]);
            self.out.extend(text.as_bytes());
        } else if let Ok(tuple) = object.cast_exact::<PyTuple>() {
            let close = match tuple.len() {
                0 => op::TUPLE_0,
                1 => op::TUPLE_1,
                2 => op::TUPLE_2,
                3 => op::TUPLE_3,
                _ => op::TUPLE,
            };
            if close != op::TUPLE_0 {
                self.meet(object)?;
            }
            self.out.extend((close == op::TUPLE).then_some(op::MARK));
            self.each(tuple.len(), tuple.iter())?;
            self.out.push(close);
        } else {
            let list = object.cast_exact::<PyList>().ok()?;
            self.meet(object)?;
            self.out.extend([op::LIST, op::MARK]);
            self.each(list.len(), list.iter())?;
            self.out.push(op::APPENDS);
        }
        Some(())
    }

    fn each<'py>(
        &mut self,
        len: usize,
        mut items: impl Iterator<Item = Bound<'py, PyAny>>,
    ) -> Option<()> {
        if len > self.left {
            return None;
        }
        items.try_for_each(|item| self.value(&item))
    }

    /// An object that may be met but once.
    fn meet(&mut self, object: &Bound<'_, PyAny>) -> Option<()> {
        let address = object.as_ptr() as usize;
        if self.seen[..self.known].contains(&address) {
            return None;
        }
        // There are no more of these than of values.
        self.seen[self.known] = address;
        self.known += 1;
        Some(())
    }

    fn int(&mut self, int: i64) {
        if let Ok(int) = u8::try_from(int) {
            self.out.extend([op::INT_1, int]);
        } else if let Ok(int) = u16::try_from(int) {
            self.out.push(op::INT_2);
            self.out.extend(int.to_le_bytes());
        } else if let Ok(int) = i32::try_from(int) {
            self.out.push(op::INT_4);
            self.out.extend(int.to_le_bytes());
        } else {
            self.out.extend([op::LONG, 8]);
            self.out.extend(int.to_le_bytes());
        }
    }
}

/// The value of a pickle, if there is nothing but a few plain values in it.
pub fn read<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    if pickle.len() > BRIEF {
        return None;
    }
    let mut reader = Reader { py, rest: pickle, stack: Vec::new(), marks: Vec::new() };
    while !reader.step()? {}
    let value = reader.stack.pop()?;
    // What comes after it would be an error of whoever wrote that.
    (reader.stack.is_empty() && reader.marks.is_empty()).then_some(())?;
    value.build(py)
}

enum Value<'py> {
    Whole(Bound<'py, PyAny>),
    /// A list that may grow still.
    List(Vec<Bound<'py, PyAny>>),
}

impl<'py> Value<'py> {
    fn build(self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        match self {
            Self::Whole(object) => Some(object),
            Self::List(items) => Some(PyList::new(py, items).ok()?.into_any()),
        }
    }
}

struct Reader<'a, 'py> {
    py: Python<'py>,
    rest: &'a [u8],
    stack: Vec<Value<'py>>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
}

impl<'a, 'py> Reader<'a, 'py> {
    /// Reads an instruction. True: it was the last.
    fn step(&mut self) -> Option<bool> {
        let py = self.py;
        let [op] = self.take()?;
        match op {
            op::STOP => return Some(true),
            op::PROTO if self.rest.first().is_some_and(|&version| version <= PROTOCOL) => {
                let [_] = self.take()?;
            }
            // Its length is for those who read from a file.
            op::FRAME => {
                let [..] = self.take::<8>()?;
            }
            // Nothing that is remembered is ever asked for: that would not be plain.
            op::MEMOIZE => {}
            op::NONE => self.whole(py.None().into_bound(py)),
            op::TRUE | op::FALSE => {
                self.whole(PyBool::new(py, op == op::TRUE).to_owned().into_any())
            }
            op::INT_1 => {
                let int = u8::from_le_bytes(self.take()?);
                self.int(int.into());
            }
            op::INT_2 => {
                let int = u16::from_le_bytes(self.take()?);
                self.int(int.into());
            }
            op::INT_4 => {
                let int = i32::from_le_bytes(self.take()?);
                self.int(int.into());
            }
            op::LONG => {
                let [len] = self.take()?;
                let bytes = self.bytes(len).filter(|it| (1..=8).contains(&it.len()))?;
                let mut int = [if bytes.last()? & 0x80 == 0 { 0 } else { 0xff }; 8];
                int[..bytes.len()].copy_from_slice(bytes);
                self.int(i64::from_le_bytes(int));
            }
            op::FLOAT => {
                let float = f64::from_be_bytes(self.take()?);
                self.whole(PyFloat::new(py, float).into_any());
            }
            op::TEXT => {
                let [len] = self.take()?;
                let text = std::str::from_utf8(self.bytes(len)?).ok()?;
                self.whole(PyString::new(py, text).into_any());
            }
            op::MARK => self.marks.push(self.stack.len()),
            op::TUPLE_0 => self.tuple(0)?,
            op::TUPLE_1 => self.tuple(1)?,
            op::TUPLE_2 => self.tuple(2)?,
            op::TUPLE_3 => self.tuple(3)?,
            op::TUPLE => {
                let from = self.marks.pop()?;
                self.tuple(self.stack.len().checked_sub(from)?)?;
            }
            op::LIST => self.stack.push(Value::List(Vec::new())),
            op::APPEND => {
                let from = self.stack.len().checked_sub(1)?;
                self.append(from)?;
            }
            op::APPENDS => {
                let from = self.marks.pop()?;
                self.append(from)?;
            }
            _ => return None,
        }
        Some(false)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*bytes)
    }

    fn bytes(&mut self, len: u8) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len.into())?;
        self.rest = rest;
        Some(bytes)
    }

    fn whole(&mut self, object: Bound<'py, PyAny>) {
        self.stack.push(Value::Whole(object));
    }

    fn int(&mut self, int: i64) {
        let Ok(int) = int.into_pyobject(self.py);
        self.whole(int.into_any());
    }

    /// Takes what lies above `from` off the stack, nothing below a mark.
    fn above(&mut self, from: usize) -> Option<Vec<Bound<'py, PyAny>>> {
        let below = self.marks.last().copied().unwrap_or(0);
        (below <= from && from <= self.stack.len()).then_some(())?;
        self.stack.drain(from..).map(|value| value.build(self.py)).collect()
    }

    fn tuple(&mut self, len: usize) -> Option<()> {
        let from = self.stack.len().checked_sub(len)?;
        let items = self.above(from)?;
        self.whole(PyTuple::new(self.py, items).ok()?.into_any());
        Some(())
    }

    fn append(&mut self, from: usize) -> Option<()> {
        let items = self.above(from)?;
        let Value::List(list) = self.stack.last_mut()? else { return None };
        if list.is_empty() {
            *list = items;
        } else {
            list.extend(items);
        }
        Some(())
    }
}
