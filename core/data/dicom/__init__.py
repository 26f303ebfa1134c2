"""DICOM in and out: headers, series, pixels, and files written from scans."""
