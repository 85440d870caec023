/* Stand-ins for what LuCI gives to its modules, as far as ours use it. What is told here to be dangerous is so in LuCI
 * too: a string that is a node's content, and not in a list, is HTML. */
'use strict';

String.prototype.format = function(...values) {
	let at = 0;
	const escaped = text => text.replace(/[&<>"']/g, letter => '&#%d;'.format(letter.charCodeAt(0)));

	return this.replace(/%(?:\.(\d+))?([sdhf%])/g, (whole, digits, kind) => {
		if (kind == '%')
			return '%';

		const value = values[at++];

		switch (kind) {
		case 'd': return String(Math.floor(+value || 0));
		case 'f': return (+value || 0).toFixed(digits == null ? 6 : +digits);
		case 'h': return escaped(String(value));
		default: return String(value);
		}
	});
};

const _ = text => {
	(window.TRANSLATED = window.TRANSLATED || new Set()).add(text);
	return text;
};

const dom = {
	elem: thing => thing instanceof Node,
	append: (node, content) => {
		if (Array.isArray(content))
			content.forEach(one => {
				if (one instanceof Node)
					node.appendChild(one);
				else if (one != null)
					node.appendChild(document.createTextNode('' + one));
			});
		else if (content instanceof Node)
			node.appendChild(content);
		else if (content != null)
			node.innerHTML = '' + content;
		return node;
	},
	content: (node, content) => {
		while (node.firstChild)
			node.removeChild(node.firstChild);
		return dom.append(node, content);
	}
};

function E(what, attributes, content) {
	if (!(attributes instanceof Object) || Array.isArray(attributes) || attributes instanceof Node)
		[ attributes, content ] = [ {}, (attributes === undefined) ? content : attributes ];

	const node = Array.isArray(what) ? dom.append(document.createDocumentFragment(), what)
		: (what[0] == '<') ? document.createRange().createContextualFragment(what).firstChild
		: document.createElement(what);

	for (const name in attributes)
		if (typeof(attributes[name]) == 'function')
			node.addEventListener(name, attributes[name]);
		else if (attributes[name] != null)
			node.setAttribute(name, (typeof(attributes[name]) == 'object') ? JSON.stringify(attributes[name]) : attributes[name]);

	return dom.append(node, content);
}

/* ---- classes ---- */

class Base {
	constructor(...values) {
		if (this.__init__)
			this.__init__(...values);
	}

	/* The next definition of that method, seen from the one that calls. */
	super(name, values) {
		const levels = [];

		for (let at = this; at != null; at = Object.getPrototypeOf(at))
			if (Object.prototype.hasOwnProperty.call(at, name))
				levels.push(at[name]);

		this.__depth = this.__depth || {};
		this.__depth[name] = (this.__depth[name] || 0) + 1;

		try {
			return levels[this.__depth[name]].apply(this, values);
		}
		finally {
			this.__depth[name]--;
		}
	}

	static extend(more) {
		const Derived = class extends this {};

		Object.assign(Derived.prototype, more);
		return Derived;
	}
}

const L = {
	isObject: thing => thing != null && typeof(thing) == 'object',
	toArray: thing => (thing == null) ? [] : Array.isArray(thing) ? thing : (typeof(thing) == 'object') ? [ thing ]
		: (String(thing).trim() == '') ? [] : String(thing).trim().split(/\s+/),
	resolveDefault: (promise, fallback) => Promise.resolve(promise).catch(() => fallback),
	bind: (call, self, ...values) => call.bind(self, ...values),
	url: (...path) => '/cgi-bin/luci/' + path.join('/'),
	resource: (...path) => '/luci-static/resources/' + path.join('/'),
	hasViewPermission: () => true,
	env: {}
};

/* ---- the router: files, ubus, uci ---- */

window.FILES = {};
window.UBUS = { system: { info: () => ({ uptime: 1000 }) } };
window.UCI = {};
window.ERRORS = [];
window.addEventListener('error', event => window.ERRORS.push(String(event.message)));
window.addEventListener('unhandledrejection', event => window.ERRORS.push(String(event.reason && event.reason.stack || event.reason)));

const rpc = {
	declare: spec => (...values) => new Promise(resolve => resolve(window.UBUS[spec.object][spec.method](...values))).then(found => {
		for (const name in spec.expect || {}) {
			const picked = (name == '' || found == null) ? found : found[name];

			return (picked == null || Array.isArray(picked) != Array.isArray(spec.expect[name])) ? spec.expect[name] : picked;
		}
		return found;
	})
};

function failed(name) {
	return Promise.reject(Object.assign(new Error(name), { name: name }));
}

const fs = {
	read: path => (window.FILES[path] == null) ? failed('NotFoundError')
		: (window.FILES[path].length >= 262144) ? failed('UnsupportedError') : Promise.resolve(window.FILES[path]),
	read_direct: path => (window.FILES[path] == null) ? failed('NotFoundError') : Promise.resolve(window.FILES[path]),
	trimmed: path => L.resolveDefault(fs.read(path), '').then(found => found.trim()),
	list: path => {
		const found = Object.keys(window.FILES).filter(name => name.startsWith(path + '/'));

		return found.length ? Promise.resolve(found.map(name => ({ name: name.slice(path.length + 1), type: 'file' })))
			: failed('NotFoundError');
	}
};

const uci = {
	load: name => [].concat(name).every(one => window.UCI[one]) ? Promise.resolve([].concat(name)) : failed('NotFoundError'),
	get: (name, sid, option) => {
		const found = (window.UCI[name] || {})[sid];

		return (found == null) ? null : (option == null) ? found : found[option];
	},
	set: (name, sid, option, value) => { window.UCI[name][sid][option] = value; },
	unset: (name, sid, option) => { delete window.UCI[name][sid][option]; },
	add: (name, type, sid) => {
		window.UCI[name][sid] = { '.name': sid, '.type': type };
		return sid;
	},
	remove: (name, sid) => { delete window.UCI[name][sid]; },
	sections: (name, type, each) => {
		const found = Object.values(window.UCI[name] || {}).filter(one => type == null || one['.type'] == type);

		if (each)
			found.forEach(one => each(one, one['.name']));
		return found;
	}
};

/* A page of the app has what its ACL grants; whatever else it asks for is refused, and the test sees that it has. */
function refusing(by) {
	const refused = what => {
		window.ERRORS.push('%s may not: %s'.format(by, what));
		return true;
	};
	const isForeign = name => [].concat(name).some(one => DATA.acl.uci.indexOf(one) < 0 && refused('uci ' + one));
	const limited = {};

	for (const name in uci)
		limited[name] = (config, ...values) => isForeign(config)
			? (name == 'load') ? failed('PermissionError') : (name == 'sections') ? [] : null
			: uci[name](config, ...values);

	return { uci: limited, rpc: { declare: spec => (...values) => ((DATA.acl.ubus[spec.object] || []).indexOf(spec.method) < 0
		&& refused('ubus %s %s'.format(spec.object, spec.method))) ? failed('PermissionError') : rpc.declare(spec)(...values) } };
}

const poll = {
	calls: [],
	add: (call, seconds) => { poll.calls.push([ call, seconds ]); },
	tick: () => Promise.all(poll.calls.map(([ call ]) => call()))
};

/* ---- protocols ---- */

const Protocol = Base.extend({
	_ubus: function(name) { return ((window.UBUS.interfaces || {})[this.sid] || {})[name]; },
	getIfname: function() { return this._ubus(this.isFloating() ? 'l3_device' : 'device') || null; },
	getDevices: function() { return this.isVirtual() ? null : [ this.getIfname() ]; },
	containsDevice: function(name) { return name == this.getIfname(); }
});

const network = {
	protocols: {},
	errors: {},
	registerErrorCode: (code, text) => { network.errors[code] = text; return true; },
	registerProtocol: (name, methods) => (network.protocols[name] = Protocol.extend(Object.assign({
		isFloating: () => false,
		isVirtual: () => false,
		__init__: function(sid) { this.sid = sid; },
		getProtocol: () => name
	}, methods)))
};

/* ---- forms ---- */

const ui = {
	showModal: (title, content) => {
		const node = E('div', { 'class': 'modal' }, [ E('h4', {}, [ title ]), ...content ]);

		ui.hideModal();
		document.body.appendChild(E('div', { 'id': 'modal_overlay' }, [ node ]));
		return node;
	},
	hideModal: () => document.querySelectorAll('#modal_overlay').forEach(node => node.remove()),
	addNotification: (title, content) => document.body.prepend(E('div', { 'class': 'alert-message' }, content))
};

const same = (one, other) => JSON.stringify(one) == JSON.stringify(other);

const AbstractValue = Base.extend({
	__init__: function(map, section, option, title, description) {
		Object.assign(this, { map, section, option, title, description, rmempty: true, keylist: [], vallist: [],
			dependencies: [], widgets: {}, values: {} });
	},
	value: function(key, text) {
		this.keylist.push(String(key));
		this.vallist.push(String(text != null ? text : key));
	},
	depends: function(option, value) { this.dependencies.push([ option, value ]); },
	isActive: function(sid) {
		return !this.dependencies.length || this.dependencies.some(([ option, value ]) =>
			this.section.children.find(o => o.option == option).formvalue(sid) == value);
	},
	load: function(sid) { return uci.get(this.map.config, sid, this.option); },
	cfgvalue: function(sid, value) {
		if (arguments.length > 1)
			this.values[sid] = value;
		return this.values[sid];
	},
	textvalue: function(sid) {
		let value = this.cfgvalue(sid);

		if (value == null)
			value = this.default;
		return (value == null) ? null : '%h'.format(Array.isArray(value) ? value.join(' ') : value);
	},
	datatypeWrong: function(value) {
		const range = (this.datatype || '').match(/^range\((\d+), (\d+)\)$/);

		if (range)
			return !(/^\d+$/.test(value) && +value >= +range[1] && +value <= +range[2]);
		if (this.datatype == 'uinteger')
			return !/^\d+$/.test(value);
		if (this.datatype)
			throw new Error('no such datatype here: ' + this.datatype);
		return false;
	},
	/* What is wrong with what the field has now, or nothing. */
	wrong: function(sid) {
		for (const value of L.toArrayOfValues(this.formvalue(sid))) {
			if (value !== '' && this.datatypeWrong(value))
				return 'not a %s'.format(this.datatype);

			const verdict = this.validate ? this.validate(sid, value) : true;

			if (verdict !== true)
				return String(verdict);
		}
		return '';
	},
	formvalue: function(sid) { return this.widgets[sid] ? this.widgets[sid].get() : null; },
	write: function(sid, value) { uci.set(this.map.config, sid, this.option, value); },
	remove: function(sid) { uci.unset(this.map.config, sid, this.option); },
	parse: function(sid) {
		if (!this.isActive(sid))
			return this.remove(sid);

		const wrong = this.wrong(sid);

		if (wrong)
			throw new TypeError('%s: %s'.format(this.option, wrong));

		const before = this.cfgvalue(sid), now = this.formvalue(sid);

		if (now == null || now === '' || now.length === 0) {
			if (!this.rmempty && !this.optional && !same(before, now))
				throw new TypeError('%s: must not be empty'.format(this.option));
			return this.remove(sid);
		}
		if (!same(before, now))
			this.write(sid, now);
	},
	frame: function(sid, widget) {
		return E('div', { 'class': 'cbi-value', 'data-name': this.option }, [
			E('label', { 'class': 'cbi-value-title' }, this.title || ''),
			E('div', { 'class': 'cbi-value-field' }, [ widget,
				...(this.description ? [ E('div', { 'class': 'cbi-value-description' }, this.description) ] : []) ])
		]);
	},
	render: function(sid) {
		return Promise.resolve(this.load(sid)).then(value => {
			this.cfgvalue(sid, value);
			return Promise.resolve(this.renderWidget(sid, 0, this.cfgvalue(sid)));
		}).then(widget => this.frame(sid, widget));
	}
});

L.toArrayOfValues = thing => Array.isArray(thing) ? thing : (thing == null) ? [] : [ thing ];

const Value = AbstractValue.extend({
	renderWidget: function(sid, index, value) {
		const node = E('input', { 'type': 'text', 'class': 'cbi-input-text', 'placeholder': this.placeholder });

		node.value = (value != null) ? value : (this.default != null) ? this.default : '';
		if (Array.isArray(value))
			node.value = value.join(' ');
		this.widgets[sid] = { get: () => node.value, set: given => { node.value = given; } };
		return node;
	}
});

const ListValue = Value.extend({
	renderWidget: function(sid, index, value) {
		const keys = this.optional ? [ '', ...this.keylist ] : this.keylist;
		const node = E('select', { 'class': 'cbi-input-select' }, keys.map(key => E('option', { 'value': key },
			[ (key == '') ? this.placeholder || '-- Please choose --' : this.vallist[this.keylist.indexOf(key)] ])));

		node.value = (value != null) ? value : (this.default != null) ? this.default : keys[0];
		this.widgets[sid] = { get: () => node.value, set: given => { node.value = given; } };
		return node;
	}
});

const Flag = Value.extend({
	enabled: '1',
	disabled: '0',
	__init__: function(...values) {
		AbstractValue.prototype.__init__.apply(this, values);
		this.default = this.disabled;
	},
	renderWidget: function(sid, index, value) {
		const node = E('input', { 'type': 'checkbox' });

		node.checked = ((value != null) ? value : this.default) == this.enabled;
		this.widgets[sid] = { get: () => node.checked ? this.enabled : this.disabled,
			set: given => { node.checked = (given == this.enabled); } };
		return node;
	},
	textvalue: function(sid) {
		const value = this.cfgvalue(sid);

		return ((value != null) ? value : this.default) == this.enabled ? _('Yes') : _('No');
	},
	parse: function(sid) {
		const now = this.formvalue(sid);

		return (!this.isActive(sid) || (now == this.default && (this.optional || this.rmempty))) ? this.remove(sid) : this.write(sid, now);
	}
});

const DynamicList = Value.extend({
	renderWidget: function(sid, index, value) {
		let items = L.toArray((value != null) ? value : this.default);
		const shown = E('div', { 'class': 'cbi-dynlist' });
		const input = E('input', { 'type': 'text', 'class': 'cbi-input-text', 'placeholder': this.placeholder });
		const draw = () => dom.content(shown, [ ...items.map(item => E('div', { 'class': 'item' }, [ E('span', {}, [ item ]) ])),
			E('div', { 'class': 'add-item' }, [ input, E('button', { 'class': 'cbi-button', 'type': 'button' }, [ '+' ]) ]) ]);

		draw();
		this.widgets[sid] = { get: () => items.slice(), set: given => { items = given; draw(); } };
		return shown;
	}
});

const DummyValue = Value.extend({
	renderWidget: function(sid, index, value) { return E('div', {}, [ value != null ? value : '' ]); },
	write: () => {},
	remove: () => {}
});

const AbstractSection = Base.extend({
	__init__: function(map, type, title, description) {
		Object.assign(this, { map, sectiontype: type, title, description, children: [], tabs: null, tab_names: [] });
	},
	tab: function(name, title) {
		this.tabs = this.tabs || {};
		this.tabs[name] = { title: title, children: [] };
		this.tab_names.push(name);
	},
	option: function(Class, ...values) {
		const o = new Class(this.map, this, ...values);

		this.children.push(o);
		return o;
	},
	taboption: function(tab, Class, ...values) {
		if (!this.tabs || !this.tabs[tab])
			throw new ReferenceError('no tab ' + tab);

		const o = this.option(Class, ...values);

		o.tab = tab;
		this.tabs[tab].children.push(o);
		return o;
	},
	getOption: function(name) { return this.children.find(o => o.option == name); },
	head: function() {
		return [ E('h3', {}, this.title || ''), E('div', { 'class': 'cbi-section-descr' }, this.description || '') ];
	},
	/* Tabs over one section's options, all of them or those of a modal. */
	renderFields: function(sid, options) {
		return Promise.all(options.map(o => o.render(sid))).then(nodes => {
			const names = this.tab_names.filter(name => options.some(o => o.tab == name));
			const panes = names.map(name => E('div', { 'class': 'pane', 'data-tab': name },
				nodes.filter((node, n) => options[n].tab == name)));
			const show = chosen => {
				panes.forEach((pane, n) => { pane.style.display = (n == chosen) ? '' : 'none'; });
				menu.childNodes.forEach((node, n) => { node.className = (n == chosen) ? 'cbi-tab' : 'cbi-tab-disabled'; });
			};
			const menu = E('ul', { 'class': 'cbi-tabmenu' }, names.map((name, n) =>
				E('li', { 'data-tab': name, 'click': () => show(n) }, [ this.tabs[name].title ])));

			if (panes.length)
				show(0);
			return E('div', { 'class': 'cbi-section-node' }, [ menu, ...panes, ...nodes.filter((node, n) => !options[n].tab) ]);
		});
	},
	cfgsections: function() { return uci.sections(this.map.config, this.sectiontype).map(one => one['.name']); },
	parse: function() { return this.cfgsections().forEach(sid => this.children.forEach(o => { if (o.widgets[sid]) o.parse(sid); })); }
});

const NamedSection = AbstractSection.extend({
	__init__: function(map, name, type, title, description) {
		AbstractSection.prototype.__init__.call(this, map, type, title, description);
		this.section = name;
	},
	cfgsections: function() { return [ this.section ]; },
	render: function() {
		return this.renderFields(this.section, this.children).then(fields => E('div', { 'class': 'cbi-section' }, [ ...this.head(), fields ]));
	}
});

const GridSection = AbstractSection.extend({
	render: function() {
		const columns = this.children.filter(o => o.modalonly !== true);

		return Promise.all(this.cfgsections().map(sid => Promise.all(columns.map(o => o.render(sid).then(frame => o.editable
			? frame.querySelector('.cbi-value-field').firstChild
			: dom.elem(o.textvalue(sid)) ? o.textvalue(sid) : (o.textvalue(sid) != null) ? E('span', {}, o.textvalue(sid)) : E('em', {}, [ 'none' ])))).then(cells =>
			E('tr', { 'class': 'tr', 'data-sid': sid }, [ E('td', { 'class': 'td' }, [ E('b', {}, [ sid ]) ]),
				...cells.map(cell => E('td', { 'class': 'td' }, [ cell ])),
				E('td', { 'class': 'td' }, [ E('button', { 'class': 'cbi-button cbi-button-edit', 'type': 'button',
					'click': () => this.renderMoreOptionsModal(sid) }, [ _('Edit') ]) ]) ])))).then(rows =>
			E('div', { 'class': 'cbi-section', 'data-type': this.sectiontype }, [ ...this.head(),
				E('table', { 'class': 'table cbi-section-table' }, [
					E('tr', { 'class': 'tr table-titles' }, [ E('th', { 'class': 'th' }, [ 'Name' ]),
						...columns.map(o => E('th', { 'class': 'th' }, o.title)), E('th', { 'class': 'th' }) ]), ...rows ]),
				...(this.addremove ? [ E('div', { 'class': 'cbi-section-create' }, [ E('input', { 'type': 'text', 'class': 'cbi-input-text' }),
					E('button', { 'class': 'cbi-button cbi-button-add', 'type': 'button' }, [ 'Add' ]) ]) ] : []) ]));
	},
	renderMoreOptionsModal: function(sid) {
		const options = this.children.filter(o => o.modalonly !== false);

		return this.renderFields(sid, options).then(fields => ui.showModal(this.modaltitle(sid), [ fields,
			E('button', { 'class': 'cbi-button cbi-button-save', 'type': 'button', 'click': () => {
				options.forEach(o => o.parse(sid));
				ui.hideModal();
			} }, [ 'Save' ]) ]));
	}
});

const form = {
	maps: [],
	Value, ListValue, Flag, DynamicList, DummyValue, AbstractValue, AbstractSection, NamedSection, GridSection,
	Map: Base.extend({
		__init__: function(config, title, description) {
			Object.assign(this, { config, title, description, children: [] });
			form.maps.push(this);
		},
		section: function(Class, ...values) {
			const s = new Class(this, ...values);

			this.children.push(s);
			return s;
		},
		render: function() {
			return Promise.all(this.children.map(s => s.render())).then(nodes => E('div', { 'class': 'cbi-map' }, [
				...(this.title ? [ E('h2', {}, this.title) ] : []), ...nodes ]));
		},
		parse: function() { this.children.forEach(s => s.parse()); },
		save: function() { return Promise.resolve().then(() => this.parse()); }
	})
};

const view = Base.extend({
	__show: function(place) {
		return Promise.resolve(this.load ? this.load() : null).then(loaded => this.render(loaded)).then(node => {
			dom.content(place, [ node,
				...((this.handleSave !== null) ? [ E('div', { 'class': 'cbi-page-actions' }, [
					E('button', { 'class': 'cbi-button cbi-button-apply', 'type': 'button' }, [ 'Save & Apply' ]) ]) ] : []) ]);
			return node;
		});
	}
});

/* ---- the loader: a module says by 'require NAME' or 'require NAME as OTHER' what it is given: of LuCI's, or of ours,
 * of which there is one instance for all ---- */

const BUILT_IN = { baseclass: Base, dom, form, fs, network, poll, rpc, uci, ui, view };
const OURS = {};

function required(name, by) {
	if (by.startsWith('view.') && (name == 'uci' || name == 'rpc'))
		return refusing(by)[name];
	if (BUILT_IN[name])
		return BUILT_IN[name];
	if (!OURS[name]) {
		if (window.SOURCES[name] == null)
			throw new Error('%s requires %s, which is not here'.format(by, name));

		const Module = loaded(name);

		if (!(Module && Module.prototype instanceof Base))
			throw new TypeError('%s is no class'.format(name));
		OURS[name] = new Module();
	}
	return OURS[name];
}

function loaded(name) {
	const source = window.SOURCES[name];
	const names = [], given = [];

	for (const line of source.split('\n')) {
		const found = line.match(/^'require ([\w.-]+)(?: as (\w+))?';$/);

		if (found == null) {
			if (line == "'use strict';" || line == '')
				continue;
			break;
		}
		names.push(found[2] || found[1].replace(/[^\w]/g, '_'));
		given.push(required(found[1], name));
	}

	return new Function('L', 'E', '_', ...names, source + '\n//# sourceURL=' + name)(L, E, _, ...given);
}

function shown(name, place) {
	const page = new (loaded(name))();

	return page.__show(place || document.getElementById('view')).then(() => page);
}
