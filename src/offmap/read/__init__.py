"""From files to images: DICOM, NIfTI, PNG, JPEG, TIFF, arrays."""
