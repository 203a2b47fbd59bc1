"""libtandem_cuda.so through ctypes, its functions and structs read from the C headers themselves.

Only what those headers use is understood: constants, enums, structs, pointer typedefs and function
declarations (inline definitions are passed over); anything else is an error, so that a declaration
is never left out. Functions take
their arguments by name, which notices an argument that was renamed or moved:

    library = Library(path, headers)
    params = library.struct('tandem_cuda_conv_params', batch=2, ...)
    library.call('tandem_cuda_conv', y=y, x=x, weight=w, bias=None, params=params)
"""

import ctypes
import os
import re

NUMBERS = {
    'char': ctypes.c_char,
    'int': ctypes.c_int,
    'unsigned': ctypes.c_uint,
    'float': ctypes.c_float,
    'double': ctypes.c_double,
    'size_t': ctypes.c_size_t,
    'bool': ctypes.c_bool,
    '_Bool': ctypes.c_bool,
}
for _bits in (8, 16, 32, 64):
    NUMBERS['int%d_t' % _bits] = getattr(ctypes, 'c_int%d' % _bits)
    NUMBERS['uint%d_t' % _bits] = getattr(ctypes, 'c_uint%d' % _bits)

TOKEN = re.compile(r'[A-Za-z_]\w*|0[xX][0-9a-fA-F]+|\d+|[{}()\[\];,*=+<>|/%!?:&.-]')


class HeaderError(Exception):
    """A declaration that this parser does not understand."""


class Function:
    """One declaration: result and arguments, as ctypes types."""

    def __init__(self, name, result, returns_error, arguments):
        self.name = name
        self.result = result
        self.returns_error = returns_error  # an `int`; numbers are int32_t and int64_t
        self.arguments = arguments  # [(name, ctypes type)]


class Headers:
    """Everything that a header and those that it includes declare."""

    def __init__(self, root, header):
        self.root = root
        self.constants = {}
        self.structs = {}
        self.typedefs = {}
        self.functions = {}
        self.files = []
        self._read(header)

    def _read(self, header):
        if header in self.files:
            return
        self.files.append(header)
        with open(os.path.join(self.root, header), encoding='utf-8') as file:
            text = file.read()
        text = re.sub(r'/\*.*?\*/', ' ', text, flags=re.S)
        text = re.sub(r'//[^\n]*', ' ', text)
        text = text.replace('\\\n', ' ')
        code = []
        skipping = 0  # depth within an #ifdef __cplusplus
        for line in text.split('\n'):
            words = line.strip().split(None, 2)
            if not words or not words[0].startswith('#'):
                if not skipping:
                    code.append(line)
                continue
            directive = words[0]
            if skipping:
                skipping += directive in ('#if', '#ifdef', '#ifndef')
                skipping -= directive == '#endif'
            elif directive == '#ifdef':
                if words[1] != '__cplusplus':
                    raise HeaderError('%s: %s' % (header, line))
                skipping = 1
            elif directive == '#define' and len(words) == 3 and '(' not in words[1]:
                if re.fullmatch(r'\(?-?(0[xX][0-9a-fA-F]+|\d+)\)?', words[2].strip()):
                    self.constants[words[1]] = int(words[2].strip().strip('()'), 0)
            elif directive == '#include' and words[1].startswith('"'):
                self._parse(header, '\n'.join(code))  # what it says may need what came before
                code = []
                self._read(words[1].strip('"'))
        self._parse(header, '\n'.join(code))

    def _parse(self, header, text):
        rest = TOKEN.sub(' ', text).strip()
        if rest:
            raise HeaderError('%s: cannot read %r' % (header, rest.split()[0]))
        tokens = Tokens(TOKEN.findall(text), header)
        while tokens.left():
            self._declaration(tokens)

    def _declaration(self, tokens):
        tokens.take_if('TANDEM_CUDA_API')
        if tokens.peek() == 'static':
            self._skip_definition(tokens)
        elif tokens.take_if('typedef'):
            kind = self._type(tokens)
            kind = self._stars(tokens, kind)
            self.typedefs[tokens.name()] = kind
            tokens.expect(';')
        elif tokens.peek() == 'enum' and tokens.peek(2) == '{':
            tokens.expect('enum')
            tokens.name()
            self._enum(tokens)
        elif tokens.peek() == 'struct' and tokens.peek(2) in ('{', ';'):
            tokens.expect('struct')
            self._struct(tokens)
        else:
            self._function(tokens)

    def _enum(self, tokens):
        tokens.expect('{')
        value = -1
        while not tokens.take_if('}'):
            name = tokens.name()
            value = self._constant(tokens, (',', '}')) if tokens.take_if('=') else value + 1
            self.constants[name] = value
            tokens.take_if(',')
        tokens.expect(';')

    def _struct(self, tokens):
        name = tokens.name()
        if tokens.take_if(';'):
            return
        tokens.expect('{')
        fields = []
        while not tokens.take_if('}'):
            base = self._type(tokens)
            while True:
                kind = self._stars(tokens, base)
                field = tokens.name()
                sizes = []
                while tokens.take_if('['):
                    sizes.append(self._constant(tokens, (']',)))
                    tokens.expect(']')
                for size in reversed(sizes):
                    kind = kind * size
                if kind is None:
                    raise HeaderError('%s: field %s of type void' % (tokens.header, field))
                fields.append((field, kind))
                if not tokens.take_if(','):
                    break
            tokens.expect(';')
        tokens.expect(';')
        self.structs[name] = type(name, (ctypes.Structure,), {'_fields_': fields})

    def _function(self, tokens):
        returns_error = tokens.peek() == 'int'
        result = self._stars(tokens, self._type(tokens))
        name = tokens.name()
        tokens.expect('(')
        arguments = []
        if tokens.peek() == 'void' and tokens.peek(1) == ')':
            tokens.expect('void')
        while tokens.peek() != ')':
            kind = self._stars(tokens, self._type(tokens))
            argument = tokens.name()
            if kind is None or isinstance(kind, type) and issubclass(kind, ctypes.Structure):
                raise HeaderError('%s: %s takes %s by value' % (tokens.header, name, argument))
            arguments.append((argument, kind))
            if not tokens.take_if(','):
                break
        tokens.expect(')')
        tokens.expect(';')
        if name in self.functions:
            raise HeaderError('%s: %s is declared twice' % (tokens.header, name))
        self.functions[name] = Function(name, result, returns_error, arguments)

    def _skip_definition(self, tokens):
        """An inline function: for C callers alone."""
        while tokens.next() != '{':
            pass
        depth = 1
        while depth > 0:
            word = tokens.next()
            depth += (word == '{') - (word == '}')

    def _type(self, tokens):
        """A base type without its stars; None is void."""
        while tokens.take_if('const'):
            pass
        word = tokens.name()
        if word == 'struct':
            name = tokens.name()
            if name not in self.structs and tokens.peek() != '*':
                raise HeaderError('%s: struct %s is not declared' % (tokens.header, name))
            kind = self.structs.get(name)
        elif word == 'enum':
            tokens.name()
            kind = ctypes.c_int
        elif word == 'void':
            kind = None
        elif word in NUMBERS:
            kind = NUMBERS[word]
        elif word in self.typedefs:
            kind = self.typedefs[word]
        else:
            raise HeaderError('%s: unknown type %s' % (tokens.header, word))
        while tokens.take_if('const'):
            pass
        return kind

    def _stars(self, tokens, kind):
        stars = 0
        while tokens.peek() in ('*', 'const'):
            stars += tokens.next() == '*'
        if stars == 0:
            return kind
        if stars == 1 and kind is ctypes.c_char:
            return ctypes.c_char_p
        if stars == 1 and isinstance(kind, type) and issubclass(kind, ctypes.Structure):
            return ctypes.POINTER(kind)
        return ctypes.c_void_p  # device memory, or a result

    def _constant(self, tokens, until):
        words = []
        while tokens.peek() not in until:
            words.append(tokens.next())
        values = [str(self.constants.get(word, word)) for word in words]
        expression = ''.join(values)
        if not re.fullmatch(r'[0-9a-fA-FxX\s()+*|<>-]+', expression):
            raise HeaderError('%s: %s is not a number' % (tokens.header, ' '.join(words)))
        return int(eval(expression, {'__builtins__': {}}))


class Tokens:
    """A cursor."""

    def __init__(self, words, header):
        self.words = words
        self.at = 0
        self.header = header

    def left(self):
        return self.at < len(self.words)

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.words[at] if at < len(self.words) else ''

    def next(self):
        if not self.left():
            raise HeaderError('%s: ends within a declaration' % self.header)
        self.at += 1
        return self.words[self.at - 1]

    def take_if(self, word):
        if self.peek() != word:
            return False
        self.at += 1
        return True

    def expect(self, word):
        got = self.next()
        if got != word:
            near = ' '.join(self.words[max(0, self.at - 6):self.at + 3])
            raise HeaderError('%s: expected %s near: %s' % (self.header, word, near))

    def name(self):
        word = self.next()
        if not re.fullmatch(r'[A-Za-z_]\w*', word):
            near = ' '.join(self.words[max(0, self.at - 6):self.at + 3])
            raise HeaderError('%s: expected a name near: %s' % (self.header, near))
        return word


class KernelError(Exception):
    """A function of the library returned an error."""


class Unsupported(KernelError):
    """... that there is no kernel for these arguments."""


class Library:
    """The loaded library."""

    def __init__(self, path, headers):
        self.path = path
        self.headers = headers
        self.stream = None  # given to every call
        self._library = ctypes.CDLL(path)
        self._functions = {}
        for name, declared in headers.functions.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                continue
            function.restype = declared.result
            function.argtypes = [kind for _, kind in declared.arguments]
            self._functions[name] = function
        version = headers.constants['TANDEM_CUDA_ABI_VERSION']
        found = self.call('tandem_cuda_abi_version')
        if found != version:
            raise KernelError('%s has interface version %d, its headers %d' %
                              (path, found, version))

    def missing(self):
        """Functions that are declared but not in the library."""
        return sorted(set(self.headers.functions) - set(self._functions))

    def has(self, name):
        return name in self._functions

    def constant(self, name):
        return self.headers.constants[name]

    def struct(self, name, **fields):
        """A struct with those fields, the others zero. Arrays are given by their pointers."""
        made = self.headers.structs[name]()
        kinds = dict(made._fields_)
        for field, value in fields.items():
            if field not in kinds:
                raise KernelError('struct %s has no field %s' % (name, field))
            setattr(made, field, _field(kinds[field], value))
        return made

    def call(self, name, **arguments):
        """Calls it; raises where it returns an error, else returns a number that is no error."""
        if name not in self._functions:
            raise KernelError('%s has no %s' % (self.path, name))
        declared = self.headers.functions[name]
        values = []
        for argument, kind in declared.arguments:
            if argument == 'stream' and argument not in arguments:
                values.append(self.stream)
                continue
            if argument not in arguments:
                raise KernelError('%s: no argument %s' % (name, argument))
            values.append(_argument(kind, arguments.pop(argument)))
        if arguments:
            raise KernelError('%s takes no %s' % (name, ', '.join(arguments)))
        result = self._functions[name](*values)
        if not declared.returns_error:
            return result
        if result == self.headers.constants['TANDEM_CUDA_UNSUPPORTED']:
            raise Unsupported('%s has no kernel for these arguments' % name)
        if result != 0:
            text = self._functions['tandem_cuda_error_string'](result)
            raise KernelError('%s: %s (%d)' % (name, text.decode(), result))
        return 0


def _argument(kind, value):
    value = getattr(value, 'pointer', value)
    if isinstance(value, int) and issubclass(kind, ctypes._Pointer):
        return ctypes.cast(value, kind)  # structs in device memory
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if isinstance(value, ctypes._SimpleCData) and not isinstance(value, ctypes.c_void_p):
        return ctypes.byref(value)  # a result
    return value


def _field(kind, value):
    value = getattr(value, 'pointer', value)
    if isinstance(value, (list, tuple)):
        return kind(*[_field(kind._type_, v) for v in value])
    return value
