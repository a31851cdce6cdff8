"""Files on disk: atomic, locked, downloaded, unpacked, temporary.

atomic    atomic writes (temporary file, then rename) and SHA-256 digests
locks     lock files: one process at a time, released when the process ends
download  resumable downloads with a verified digest
archive   extraction of archives, confined to the target folder
state     nested tensors and numbers in one file, without pickle
kept      tensors in a temporary file: what does not fit in memory
"""
