//! Parts of sequences.

use pyo3::prelude::*;
use pyo3::types::PySlice;

/// `slice(start, end)`.
///
/// Not by `PySlice::new`: that of PyO3 0.30 never lets go of its numbers, since `PySlice_New` takes
/// references of its own.
pub fn slice(py: Python<'_>, start: usize, end: usize) -> PyResult<Bound<'_, PyAny>> {
    py.get_type::<PySlice>().call1((start, end))
}
