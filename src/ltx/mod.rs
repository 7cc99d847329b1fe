//! LTX version 3: header, encode, decode, merge. Pure.
