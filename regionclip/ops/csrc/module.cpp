// An empty Python module of the name REGIONCLIP_MODULE: importing it loads the library, which registers
// the operators.
#include <Python.h>

#define REGIONCLIP_STRING_OF(name) #name
#define REGIONCLIP_STRING(name) REGIONCLIP_STRING_OF(name)
#define REGIONCLIP_INIT_OF(name) PyInit_##name
#define REGIONCLIP_INIT(name) REGIONCLIP_INIT_OF(name)

PyMODINIT_FUNC REGIONCLIP_INIT(REGIONCLIP_MODULE)(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, REGIONCLIP_STRING(REGIONCLIP_MODULE), nullptr, -1, nullptr, nullptr, nullptr, nullptr,
      nullptr};
  return PyModule_Create(&definition);
}
