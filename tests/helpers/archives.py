"""Tar shards and Parquet files with images."""

import io
import tarfile


def write_tar(path, members, mode="w"):
    """Write a tar file of `(name, bytes)`."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_table(path, columns, **options):
    """Write a Parquet file of columns."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path
